from __future__ import annotations

import hashlib
import math

import pytest
import torch

from alignkit.config import SamplingConfig
from alignkit.sampling.distribution import distribution
from alignkit.sampling.draw import draw, exponentials

CPU = torch.device("cpu")
NUM_DRAWS = 100_000


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return ((counts - expected).square() / expected).sum().item()


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(do_sample=True),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=3.0, top_k=8),
        SamplingConfig(top_p=0.7),
        SamplingConfig(min_p=0.2),
    ],
)
def test_frequencies_of_100_000_draws_match_the_distribution(sampling: SamplingConfig) -> None:
    logits = torch.randn(16, generator=torch.Generator().manual_seed(4))
    probabilities = distribution(logits, sampling)
    ids = draw(probabilities.expand(NUM_DRAWS, -1), seed=1, rows=range(NUM_DRAWS), step=0)
    counts = torch.bincount(ids, minlength=16).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double() * NUM_DRAWS
    degrees = int(possible.sum()) - 1
    # 4.5 standard deviations above the mean of χ² (df, variance 2 df)
    assert chi_square(counts[possible], expected) < degrees + 4.5 * math.sqrt(2 * degrees)


def test_many_steps_of_one_row_match_too() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    ids = torch.cat([draw(probabilities, seed=0, rows=[7], step=step) for step in range(20_000)])
    assert chi_square(torch.bincount(ids).double(), probabilities[0] * 20_000) < 16.3  # p = 0.001 at 3 degrees
    pairs = torch.bincount(ids[:-1] * 4 + ids[1:], minlength=16).double()
    expected = (probabilities.T * probabilities).flatten() * 19_999
    assert chi_square(pairs, expected) < 37.7  # p = 0.001 at 15 degrees: a step says nothing about the next


def test_a_row_does_not_depend_on_the_others() -> None:
    probabilities = torch.rand(9, 500, generator=torch.Generator().manual_seed(0))
    together = draw(probabilities, seed=3, rows=range(9), step=5)
    alone = [draw(probabilities[row : row + 1], seed=3, rows=[row], step=5).item() for row in range(9)]
    assert together.tolist() == alone
    turned = draw(probabilities.flip(0), seed=3, rows=range(8, -1, -1), step=5)
    assert turned.flip(0).tolist() == alone


def test_seed_row_and_step_each_change_the_draw() -> None:
    flat = torch.ones(1, 100_000)
    ids = {draw(flat, seed=s, rows=[r], step=t).item() for s in (0, 1, 2**63) for r in (0, 1) for t in (0, 1)}
    assert len(ids) == 12


def test_a_token_without_probability_is_never_drawn() -> None:
    probabilities = torch.zeros(20_000, 300)
    probabilities[:, 17] = 1e-30
    assert draw(probabilities, seed=0, rows=range(20_000), step=0).eq(17).all()


def test_the_slowest_arrival_still_arrives() -> None:
    """Row 1859, token 6783: its uniform number would round to 1, its arrival to infinity."""
    assert exponentials(0, [1859], 0, 6784, CPU)[0, 6783].item() == pytest.approx(24 * math.log(2))
    probabilities = torch.zeros(1, 6784)
    probabilities[0, 6783] = 1
    assert draw(probabilities, seed=0, rows=[1859], step=0).item() == 6783


def test_no_arrival_is_instantaneous() -> None:
    """Row 487110, token 360: all bits 0. At time 0 it would win against any odds."""
    assert exponentials(0, [487110], 0, 361, CPU)[0, 360].item() == pytest.approx(2**-32)
    probabilities = torch.ones(1, 361)
    probabilities[0, 360] = 0
    assert draw(probabilities, seed=0, rows=[487110], step=0).item() != 360


def test_the_numbers_are_exponential_and_independent() -> None:
    numbers = exponentials(11, range(64), 2, 50_000, CPU)
    assert numbers.min() > 0
    assert numbers.max() <= 16.7
    below = [(numbers < x).double().mean().item() for x in (1e-3, 0.1, 1.0, 4.0)]
    assert below == pytest.approx([1 - math.exp(-x) for x in (1e-3, 0.1, 1.0, 4.0)], abs=1e-3)
    assert numbers.mean().item() == pytest.approx(1, abs=3e-3)
    correlation = torch.corrcoef(numbers) - torch.eye(64)  # rows against rows; standard error 1/√50 000 = 0.0045
    assert correlation.abs().max() < 0.025
    neighbours = torch.corrcoef(torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.003  # standard error 0.0006
    next_step = exponentials(11, range(64), 3, 50_000, CPU)
    assert abs(torch.corrcoef(torch.stack([numbers.flatten(), next_step.flatten()]))[0, 1]) < 0.003


def slow_mix(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def slow_exponential(seed: int, row: int, step: int, token: int) -> float:
    key = hashlib.blake2b(f"{seed} {row} {step}".encode(), digest_size=8).digest()
    inner, outer = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")
    bits = slow_mix(slow_mix(token) ^ inner) ^ outer
    signed = bits - 2**32 if bits >= 2**31 else bits
    return -math.log1p(-min(abs(signed + 0.5) / 2**31, 1 - 2**-24))


def test_the_numbers_are_these_for_ever() -> None:
    """Reproducible across versions and devices: what a seed draws is part of what it promises."""
    numbers = exponentials(7, [0, 12], 3, 1000, CPU)
    for row, place in ((0, 0), (12, 1)):
        expected = [slow_exponential(7, row, 3, token) for token in range(1000)]
        assert numbers[place].tolist() == pytest.approx(expected, rel=1e-5)
    assert slow_exponential(0, 0, 0, 0) == pytest.approx(1.1983865)
