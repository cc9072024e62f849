"""Estimates by value, and intervals that hold what they promise."""

import math
import random
from collections.abc import Callable

import pytest

from alignkit.evaluate.statistics import (
    Interval,
    expectation,
    fewest_responses,
    mean_interval,
    most_others,
    rate_interval,
    student_quantile,
    win_rate,
)


def test_an_expectation_by_value() -> None:
    found = expectation([[1.0, 3.0], [4.0, 6.0], [9.0, 7.0]])  # means 2, 5, 8: variance 9; within each: 2
    assert found.mean == 5
    assert (found.var_within, found.var_between) == (2, 8)
    assert found.standard_error == pytest.approx(math.sqrt(9 / 3))
    assert found.within == pytest.approx(math.sqrt(2 / 6))
    assert found.between == pytest.approx(math.sqrt(8 / 3))
    assert found.high - found.mean == pytest.approx(4.302653 * math.sqrt(3), rel=1e-6)  # t of 2 degrees


def test_noise_alone_leaves_nothing_between_prompts() -> None:
    found = expectation([[0.0, 2.0], [2.0, 0.0]])
    assert (found.mean, found.var_between, found.between) == (1, 0, 0)
    assert found.standard_error == found.within == pytest.approx(math.sqrt(2 / 4))  # a variance of 2, of 4 samples
    assert found.high - found.mean == pytest.approx(4.302653 * math.sqrt(2 / 4), rel=1e-6)  # t of 2 degrees


def test_equal_values_tell_nothing_of_their_spread() -> None:
    found = expectation([[1.0, 1.0], [1.0, 1.0]])
    assert found.mean == 1
    assert all(map(math.isnan, (found.standard_error, found.low, found.high, found.between, found.within)))
    assert all(map(math.isnan, (mean_interval([0.1] * 3).low, mean_interval([0.1] * 3, weights_N=[1, 2, 4]).high)))
    assert mean_interval([0.1] * 3, weights_N=[1, 2, 4]).value == 0.1


@pytest.mark.parametrize(("num_equal", "share"), [(1, 0.95), (8, 0.3123), (32, 0.0894), (300, 0.00994)])
def test_what_equal_values_leave_possible(num_equal: int, share: float) -> None:
    assert most_others(num_equal) == pytest.approx(share, rel=1e-3)
    assert (1 - most_others(num_equal)) ** num_equal == pytest.approx(0.05)


def test_one_sample_each_cannot_tell_the_parts_apart() -> None:
    found = expectation([[1.0], [3.0]])
    assert math.isnan(found.within)
    assert found.between == found.standard_error == 1
    alone = expectation([[1.0, 2.0]])
    assert (alone.mean, alone.var_within) == (1.5, 0.5)
    assert math.isnan(alone.standard_error)


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_hold_the_true_mean_as_often_as_they_say(skewed: bool) -> None:
    source = random.Random(5)

    def draw() -> list[list[float]]:
        prompts = [source.gauss(2, 1) for _ in range(30)]
        noise = (lambda: source.expovariate(1) - 1) if skewed else (lambda: source.gauss(0, 1))
        return [[mean + noise() for _ in range(4)] for mean in prompts]

    held = [(found := expectation(draw())).low <= 2 <= found.high for _ in range(1000)]
    assert sum(held[:100]) >= 93
    assert 930 <= sum(held) <= 970


def test_the_parts_are_those_of_the_simulation() -> None:
    source = random.Random(1)
    rows = []
    for _ in range(3000):
        mean = source.gauss(0, 2)
        rows.append([source.gauss(mean, 3) for _ in range(5)])
    found = expectation(rows)
    assert found.var_between == pytest.approx(4, rel=0.1)
    assert found.var_within == pytest.approx(9, rel=0.1)


def test_a_suggestion_reaches_what_was_wished() -> None:
    found = expectation([[1.0, 3.0], [4.0, 6.0], [9.0, 7.0]])  # σ²_b = 8, σ²_w = 2
    assert fewest_responses(found, 1.0) == (39, 1)  # 10 · 1.96² = 38.4
    assert fewest_responses(found, 1.0, most_prompts=100) == (39, 1)
    num_prompts, num_samples = fewest_responses(found, 1.0, most_prompts=35) or (0, 0)
    assert (num_prompts, num_samples) == (35, 2)
    assert 1.96**2 * (8 / 35 + 2 / (35 * 2)) < 1.0 < 1.96**2 * (8 / 35 + 2 / 35)
    assert fewest_responses(found, 1.0, most_prompts=20) is None  # 8 / 20 alone is too much


def test_a_mean_with_its_interval_by_value() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 6.0])  # variance 14/3
    assert found.value == 3
    reach = 3.182446305 * math.sqrt(14 / 3 / 4)
    assert (found.low, found.high) == (pytest.approx(3 - reach), pytest.approx(3 + reach))
    assert math.isnan(mean_interval([2.0]).low)


def test_a_weighted_mean_is_a_ratio() -> None:
    found = mean_interval([1.0, 4.0, 2.0], weights_N=[3.0, 1.0, 2.0])
    assert found.value == pytest.approx(11 / 6)
    left_out = [8 / 3, 7 / 5, 7 / 4]  # ratios of the other two
    error = math.sqrt(2 / 3 * sum((ratio - sum(left_out) / 3) ** 2 for ratio in left_out))
    assert found.high - found.value == pytest.approx(student_quantile(0.975, 36 / 14 - 1) * error)
    assert mean_interval([1.0, 4.0, 2.0], weights_N=[7.0] * 3).high == pytest.approx(mean_interval([1, 4, 2]).high)


def coverage(draw: Callable[[random.Random], tuple[Interval, float]], times: int = 4000) -> float:
    source = random.Random(3)
    found = [draw(source) for _ in range(times)]
    return sum(interval.low <= truth <= interval.high for interval, truth in found) / times


@pytest.mark.parametrize(("num_values", "rate"), [(5, 0.9), (20, 0.95), (10, 0.02), (8, 0.5), (50, 0.7), (200, 0.99)])
@pytest.mark.parametrize("ties", [0.0, 0.3])
def test_intervals_of_rates_cover(num_values: int, rate: float, ties: float) -> None:
    """The standard error of a coverage of 0.95 in 4000 draws is 0.003."""

    def draw(source: random.Random) -> tuple[Interval, float]:
        points = [0.5 if source.random() < ties else float(source.random() < rate) for _ in range(num_values)]
        return win_rate(points, [0.5] * num_values).rate, ties / 2 + (1 - ties) * rate

    assert coverage(draw) >= 0.94


@pytest.mark.parametrize("num_values", [3, 8, 30])
@pytest.mark.parametrize(("weighted", "lowest"), [(False, 0.94), (True, 0.92)])
def test_intervals_of_means_cover(num_values: int, weighted: bool, lowest: float) -> None:
    def draw(source: random.Random) -> tuple[Interval, float]:
        weights = [source.randint(5, 60) if weighted else 1 for _ in range(num_values)]
        losses = [source.gammavariate(4, 0.5) if weighted else source.gauss(2, 1) for _ in range(num_values)]
        return mean_interval(losses, weights_N=weights), 2.0

    assert coverage(draw) >= lowest


def test_wins_ties_and_losses() -> None:
    found = win_rate([1, 2, 3, 4], [0, 2, 5, 4])
    assert (found.wins, found.ties, found.losses, found.rate.value) == (1, 2, 1, 0.5)
    always = win_rate([1] * 10, [0] * 10).rate
    assert (always.value, always.low, always.high) == (1, pytest.approx(0.6555, abs=1e-4), 1)
    never = win_rate([0] * 10, [1] * 10).rate
    assert (never.value, never.low, never.high) == (0, 0, pytest.approx(0.3445, abs=1e-4))


def test_a_rate_by_value() -> None:
    """Newcombe 1998, table I, method 4: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    ends = {(81, 263): (0.2535, 0.3682), (15, 148): (0.0598, 0.1644), (0, 20): (0, 0.2005), (1, 29): (0.0018, 0.1963)}
    for (num_right, num_all), (low, high) in ends.items():
        found = rate_interval(num_right, num_all)
        assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


@pytest.mark.parametrize(
    ("degrees", "exact"),
    [(1, 12.70620474), (2, 4.30265273), (3, 3.18244631), (5, 2.57058184), (10, 2.22813885), (60, 2.00029782)],
)
def test_quantiles_of_student(degrees: int, exact: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(exact, rel=1e-8)
