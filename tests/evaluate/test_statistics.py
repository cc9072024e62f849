"""Estimates by value, and intervals that hold what they promise."""

import math
import random

import pytest

from alignkit.evaluate.statistics import bootstrap_mean, expectation, fewest_responses, student_quantile, win_rate


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
    assert (found.mean, found.var_between, found.between, found.standard_error) == (1, 0, 0, 0)


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


def test_the_bootstrap_is_seeded_and_covers() -> None:
    source = random.Random(2)
    values = [source.gauss(0.3, 1) for _ in range(50)]
    found = bootstrap_mean(values, seed=1)
    assert found == bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(sum(values) / 50)
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(50), rel=0.25)
    held = 0
    for _ in range(100):
        interval = bootstrap_mean([source.gauss(0.3, 1) for _ in range(50)], seed=0)
        held += interval.low <= 0.3 <= interval.high
    assert held >= 90


def test_a_weighted_mean_is_a_ratio() -> None:
    found = bootstrap_mean([1.0, 4.0], seed=0, weights_N=[3.0, 1.0])
    assert (found.value, found.low, found.high) == (1.75, 1.0, 4.0)


def test_wins_ties_and_losses() -> None:
    found = win_rate([1, 2, 3, 4], [0, 2, 5, 4], seed=0)
    assert (found.wins, found.ties, found.losses, found.rate.value) == (1, 2, 1, 0.5)
    always = win_rate([1, 2], [0, 0], seed=0).rate
    assert (always.value, always.low, always.high) == (1, 1, 1)


@pytest.mark.parametrize(
    ("degrees", "exact"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (60, 2.0003)]
)
def test_quantiles_of_student(degrees: int, exact: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(exact, rel=5e-3 if degrees == 3 else 5e-4)
