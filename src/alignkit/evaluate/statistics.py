"""Numbers with their uncertainty: an expected reward split by its sources of noise, and differences of paired runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

import torch
from torch import Tensor

_NUM_RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # resampled numbers held at a time: 32 MB


@dataclass(frozen=True)
class Interval:
    """A figure and the 95 % confidence interval around it."""

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
    within prompts does not explain, at least 0. The interval is Student's with N − 1 degrees of freedom.

    Args:
        values_NK: N at least 1, K the same for all.
    """
    num_prompts, num_samples = len(values_NK), len(values_NK[0])
    assert all(len(row) == num_samples for row in values_NK), "as many samples of each prompt"
    means = [fmean(row) for row in values_NK]
    mean = fmean(means)
    var_within = fmean([variance(row) for row in values_NK]) if num_samples > 1 else math.nan
    if num_prompts == 1:
        nan = math.nan
        return Expectation(mean, nan, nan, nan, nan, nan, nan, var_within, num_prompts, num_samples)
    squared_error = variance(means) / num_prompts
    noise = var_within / num_samples if num_samples > 1 else 0.0
    var_between = max(0.0, variance(means) - noise)
    within = math.sqrt(min(noise / num_prompts, squared_error)) if num_samples > 1 else math.nan
    between = math.sqrt(max(0.0, squared_error - (within**2 if num_samples > 1 else 0.0)))
    standard_error = math.sqrt(squared_error)
    reach = student_quantile(0.975, num_prompts - 1) * standard_error
    low, high = mean - reach, mean + reach
    return Expectation(
        mean, standard_error, between, within, low, high, var_between, var_within, num_prompts, num_samples
    )


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


def bootstrap_mean(values_N: Sequence[float], *, seed: int, weights_N: Sequence[float] | None = None) -> Interval:
    """Compute the mean and its 95 % percentile interval (Efron & Tibshirani 1993, §13).

    Prompts are resampled with replacement. Given the differences of two runs on the same prompts it is the paired
    bootstrap.

    Args:
        values_N: one for each prompt.
        seed: of the resamples.
        weights_N: for a ratio Σ w·v / Σ w, such as a loss per token; None weighs all alike.
    """
    values = torch.tensor(list(values_N), dtype=torch.float64)
    weights = torch.ones_like(values) if weights_N is None else torch.tensor(list(weights_N), dtype=torch.float64)
    value = _ratio(values * weights, weights).item()
    generator = torch.Generator().manual_seed(seed)
    num_values, means = len(values), []
    step = max(1, _AT_ONCE // num_values)
    for start in range(0, _NUM_RESAMPLES, step):
        rows = min(step, _NUM_RESAMPLES - start)
        chosen = torch.randint(num_values, (rows, num_values), generator=generator)
        means.append(_ratio((values * weights)[chosen], weights[chosen]))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value, low, high)


@dataclass(frozen=True)
class Wins:
    """How often one run's response is better than another's to the same prompt.

    Attributes:
        wins: prompts where it is better.
        ties: prompts where they are equal.
        losses: prompts where it is worse.
        rate: (wins + ties / 2) / N, with its paired bootstrap interval.
    """

    wins: int
    ties: int
    losses: int
    rate: Interval


def win_rate(ours_N: Sequence[float], theirs_N: Sequence[float], *, seed: int) -> Wins:
    """Compare two runs' scores on the same prompts."""
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours_N, theirs_N, strict=True)]
    wins, ties = points.count(1.0), points.count(0.5)
    return Wins(wins, ties, len(points) - wins - ties, bootstrap_mean(points, seed=seed))


def student_quantile(p: float, degrees: int) -> float:
    """Compute the quantile of Student's t.

    Exact for 1 and 2 degrees, else by the expansion of Abramowitz & Stegun 26.7.5: within 0.5 % for 3 degrees, 0.05 %
    from 5 on, at p = 0.975.
    """
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z, n = NormalDist().inv_cdf(p), degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    quantile: float = z + sum(term / n**power for power, term in enumerate(terms, start=1))
    return quantile


def _ratio(weighted: Tensor, weights: Tensor) -> Tensor:
    return weighted.sum(-1) / weights.sum(-1)
