"""Numbers with their uncertainty: an expected reward split by its sources of noise, and differences of paired runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A figure and the 95 % confidence interval around it; its ends are NaN where the values do not tell it.

    They do not where there is one alone, or where all are equal: a sample variance of 0 is no estimate of the spread,
    and an interval of width 0 would promise that every other value is the same (see `most_others`).
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Expectation:
    """A mean over prompts and responses, E_x E_y[r(x, y)], of N prompts with K samples each.

    Attributes:
        mean: of all N·K values.
        standard_error: of the mean, over new prompts and new samples: √(between² + within²).
        between: its part from which prompts were asked, √(σ²_b / N).
        within: its part from what was drawn for each, √(σ²_w / (N·K)); NaN where K = 1 cannot tell it apart, and then
            `between` has all of it.
        low: of the 95 % interval.
        high: of the 95 % interval.
        var_between: σ²_b, the variance of the prompts' own means, by the one-way analysis of variance.
        var_within: σ²_w, the variance of the samples of one prompt.
        num_prompts: N.
        num_samples: K.
    """

    mean: float
    standard_error: float
    between: float
    within: float
    low: float
    high: float
    var_between: float
    var_within: float
    num_prompts: int
    num_samples: int


def expectation(values_NK: Sequence[Sequence[float]]) -> Expectation:
    """Estimate an expected value from K samples of each of N prompts (one-way random effects, e.g. Searle 1992, §3).

    The variance of the mean is that of the N prompt means over N, whatever their parts; σ²_b is what of it the noise
    within prompts does not explain, at least 0. The interval is Student's with N − 1 degrees of freedom. Where all
    prompt means are equal, the noise within prompts is what is known: its variance over N·K, with N·(K − 1) degrees.
    Where all values are equal, nothing is: errors and interval are NaN (see `Interval`).

    Args:
        values_NK: N at least 1, K the same for all.
    """
    num_prompts, num_samples = len(values_NK), len(values_NK[0])
    assert all(len(row) == num_samples for row in values_NK), "as many samples of each prompt"
    means = [fmean(row) for row in values_NK]
    mean = fmean(means)
    var_within = fmean([variance(row) for row in values_NK]) if num_samples > 1 else math.nan
    if num_prompts == 1 or _all_equal(values_NK):
        nan = math.nan
        return Expectation(mean, nan, nan, nan, nan, nan, nan, var_within, num_prompts, num_samples)
    squared_error, degrees = variance(means) / num_prompts, num_prompts - 1
    if squared_error == 0:
        squared_error, degrees = var_within / num_samples / num_prompts, num_prompts * (num_samples - 1)
    noise = var_within / num_samples if num_samples > 1 else 0.0
    var_between = max(0.0, variance(means) - noise)
    within = math.sqrt(min(noise / num_prompts, squared_error)) if num_samples > 1 else math.nan
    between = math.sqrt(max(0.0, squared_error - (within**2 if num_samples > 1 else 0.0)))
    standard_error = math.sqrt(squared_error)
    reach = student_quantile(0.975, degrees) * standard_error
    low, high = mean - reach, mean + reach
    return Expectation(
        mean, standard_error, between, within, low, high, var_between, var_within, num_prompts, num_samples
    )


def _all_equal(values_NK: Sequence[Sequence[float]]) -> bool:
    first = values_NK[0][0]
    return all(value == first for row in values_NK for value in row)


def most_others(num_equal: int) -> float:
    """Compute the largest share of others that N draws, all of one value, leave possible at 95 % confidence.

    If a share p had another value, N draws would all miss it with (1 − p)^N: p is at most 1 − 0.05^(1/N), about 3 / N
    (the rule of three: Hanley & Lippman-Hand 1983). It holds for any distribution.
    """
    return float(1 - 0.05 ** (1 / num_equal))


def fewest_responses(
    found: Expectation, half_width: float, *, most_prompts: int | None = None
) -> tuple[int, int] | None:
    """Find the fewest responses N·K whose 95 % interval is expected to be ± `half_width`.

    Var(mean) = σ²_b / N + σ²_w / (N·K): for a given number of responses one of each prompt is best. More samples
    of each are worth their cost only if there are no more prompts.

    Args:
        found: from a first look, with K of at least 2.
        half_width: half the width of the interval.
        most_prompts: how many there are; None where new ones can be had.

    Returns:
        N and K; None if no number of samples of these prompts reaches it.
    """
    squared = (half_width / NormalDist().inv_cdf(0.975)) ** 2
    var_within = 0.0 if math.isnan(found.var_within) else found.var_within
    num_prompts = max(2, math.ceil((found.var_between + var_within) / squared))
    if most_prompts is None or num_prompts <= most_prompts:
        return num_prompts, 1
    left = squared - found.var_between / most_prompts
    return (most_prompts, math.ceil(var_within / most_prompts / left)) if left > 0 else None


def mean_interval(values_N: Sequence[float], *, weights_N: Sequence[float] | None = None) -> Interval:
    """Compute the mean and its 95 % interval: Student's t with the jackknife's error (Efron & Tibshirani 1993, §11).

    Given the differences of two runs on the same prompts it is the paired interval. The degrees of freedom are one less
    than the effective number of values, (Σ w)² / Σ w² (Kish 1965), which is N where all weigh alike. Percentiles of a
    bootstrap cover too little where N is small.

    Args:
        values_N: one for each prompt; of one alone, or of equal ones, nothing tells how sure it is: the ends are NaN.
        weights_N: for a ratio Σ w·v / Σ w, such as a loss per token; None weighs all alike.
    """
    values = np.asarray(values_N, dtype=np.float64)
    weights = np.ones_like(values) if weights_N is None else np.asarray(weights_N, dtype=np.float64)
    weighted, num_values = values * weights, len(values)
    mean = float(weighted.sum() / weights.sum())
    if (values == values[0]).all():
        return Interval(float(values[0]), math.nan, math.nan)
    left_out = (weighted.sum() - weighted) / (weights.sum() - weights)
    error = math.sqrt((num_values - 1) / num_values * ((left_out - left_out.mean()) ** 2).sum())
    degrees = max(1.0, weights.sum() ** 2 / (weights**2).sum() - 1)
    reach = student_quantile(0.975, degrees) * error
    return Interval(mean, mean - reach, mean + reach)


def rate_interval(num_right: float, num_all: int) -> Interval:
    """Compute a rate and its 95 % interval: Wilson's score interval corrected for continuity (Newcombe 1998, method 4).

    It covers near 0 and 1 and for a handful of values. Without the correction 92 % of them do at N = 5, p = 0.9.

    Args:
        num_right: a tie counts half, which makes the interval wider than it must be.
        num_all: at least 1.
    """
    n, p, z = num_all, num_right / num_all, NormalDist().inv_cdf(0.975)
    ends = []
    for sign in (-1, 1):
        spread = z * z + sign * 2 - 1 / n + 4 * p * (n * (1 - p) - sign)
        ends.append((2 * n * p + z * z + sign * (1 + z * math.sqrt(max(0.0, spread)))) / (2 * (n + z * z)))
    return Interval(p, 0.0 if p == 0 else max(0.0, ends[0]), 1.0 if p == 1 else min(1.0, ends[1]))


@dataclass(frozen=True)
class Wins:
    """How often one run's response is better than another's to the same prompt.

    Attributes:
        wins: prompts where it is better.
        ties: prompts where they are equal.
        losses: prompts where it is worse.
        rate: (wins + ties / 2) / N.
    """

    wins: int
    ties: int
    losses: int
    rate: Interval


def win_rate(ours_N: Sequence[float], theirs_N: Sequence[float]) -> Wins:
    """Compare two runs' scores on the same prompts."""
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours_N, theirs_N, strict=True)]
    wins, ties = points.count(1.0), points.count(0.5)
    return Wins(wins, ties, len(points) - wins - ties, rate_interval(wins + ties / 2, len(points)))


def student_quantile(p: float, degrees: float) -> float:
    """Compute the quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, p))
