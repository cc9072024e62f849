from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import pytest
import torch

from alignkit.config import SamplingConfig
from alignkit.sampling.distribution import distribution
from alignkit.sampling.draw import draw, exponentials, race_keys

CPU = torch.device("cpu")
NUM_DRAWS = 100_000


def draws(probabilities: torch.Tensor, seed: int = 0, step: int = 0) -> torch.Tensor:
    """One draw of each row, all at one step; rows are told apart by their places."""
    rows = range(len(probabilities))
    return draw(probabilities, seed=seed, rows=rows, steps=[step] * len(rows))


def numbers(seed: int, rows: Sequence[int], step: int, num_tokens: int) -> torch.Tensor:
    return exponentials(race_keys(seed, rows, [step] * len(rows), CPU), torch.arange(num_tokens))


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
    ids = draws(probabilities.expand(NUM_DRAWS, -1), seed=1)
    counts = torch.bincount(ids, minlength=16).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double() * NUM_DRAWS
    degrees = int(possible.sum()) - 1
    # 4.5 standard deviations above the mean of χ² (df, variance 2 df)
    assert chi_square(counts[possible], expected) < degrees + 4.5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("num_tokens", [256, 300, 1500])
def test_frequencies_match_where_blocks_race_first(num_tokens: int) -> None:
    """Tokens of most probabilities there are, at every place of a block, and a last block that is not full."""
    logits = 2 * torch.randn(num_tokens, generator=torch.Generator().manual_seed(5))
    logits[3:200] -= 100  # a block of almost nothing but its first tokens
    probabilities = logits.softmax(-1)
    counts = torch.zeros(num_tokens, dtype=torch.double)
    for step in range(10):
        counts += torch.bincount(draws(probabilities.expand(10_000, -1), step=step), minlength=num_tokens)
    expected = probabilities.double() * 100_000
    common = expected > 5
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    degrees = len(counts) - 1
    assert chi_square(counts, expected) < degrees + 4.5 * math.sqrt(2 * degrees)


def test_many_steps_of_one_row_match_too() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).expand(20_000, -1)
    ids = draw(probabilities, seed=0, rows=[7] * 20_000, steps=range(20_000))
    assert chi_square(torch.bincount(ids).double(), probabilities[0] * 20_000) < 16.3  # p = 0.001 at 3 degrees
    pairs = torch.bincount(ids[:-1] * 4 + ids[1:], minlength=16).double()
    expected = (probabilities[:1].T * probabilities[:1]).flatten() * 19_999
    assert chi_square(pairs, expected) < 37.7  # p = 0.001 at 15 degrees: a step says nothing about the next


def test_a_row_does_not_depend_on_the_others() -> None:
    probabilities = torch.rand(9, 500, generator=torch.Generator().manual_seed(0))
    rows, steps = list(range(9)), [5, 0, 0, 1, 2, 3, 5, 8, 13]
    together = draw(probabilities, seed=3, rows=rows, steps=steps)
    alone = [draw(probabilities[i : i + 1], seed=3, rows=[i], steps=steps[i : i + 1]).item() for i in rows]
    assert together.tolist() == alone
    turned = draw(probabilities.flip(0), seed=3, rows=rows[::-1], steps=steps[::-1])
    assert turned.flip(0).tolist() == alone


def test_seed_row_and_step_each_change_the_draw() -> None:
    flat = torch.ones(1, 100_000)
    ids = {draw(flat, seed=s, rows=[r], steps=[t]).item() for s in (0, 1, 2**63) for r in (0, 1) for t in (0, 1)}
    assert len(ids) == 12


@pytest.mark.parametrize("token", [0, 17, 255, 256, 299])
def test_a_token_without_probability_is_never_drawn(token: int) -> None:
    probabilities = torch.zeros(20_000, 300)
    probabilities[:, token] = 1e-30
    assert draws(probabilities).eq(token).all()


def test_the_slowest_arrival_still_arrives() -> None:
    """Row 1859, token 6783: its uniform number would round to 1, its arrival to infinity."""
    assert numbers(0, [1859], 0, 6784)[0, 6783].item() == pytest.approx(24 * math.log(2))
    probabilities = torch.zeros(1, 6784)
    probabilities[0, 6783] = 1
    assert draw(probabilities, seed=0, rows=[1859], steps=[0]).item() == 6783


def test_no_arrival_is_instantaneous() -> None:
    """Row 487110, token 360: all bits 0. At time 0 it would win against any odds."""
    assert numbers(0, [487110], 0, 361)[0, 360].item() == pytest.approx(2**-32)
    probabilities = torch.ones(1, 361)
    probabilities[0, 360] = 0
    assert draw(probabilities, seed=0, rows=[487110], steps=[0]).item() != 360


def test_the_numbers_are_exponential_and_independent() -> None:
    found = numbers(11, range(64), 2, 50_000)
    assert found.min() > 0
    assert found.max() <= 16.7
    below = [(found < x).double().mean().item() for x in (1e-3, 0.1, 1.0, 4.0)]
    assert below == pytest.approx([1 - math.exp(-x) for x in (1e-3, 0.1, 1.0, 4.0)], abs=1e-3)
    assert found.mean().item() == pytest.approx(1, abs=3e-3)
    correlation = torch.corrcoef(found) - torch.eye(64)  # rows against rows; standard error 1/√50 000 = 0.0045
    assert correlation.abs().max() < 0.025
    neighbours = torch.corrcoef(torch.stack([found[:, :-1].flatten(), found[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.003  # standard error 0.0006
    next_step = numbers(11, range(64), 3, 50_000)
    assert abs(torch.corrcoef(torch.stack([found.flatten(), next_step.flatten()]))[0, 1]) < 0.003


def slow_mix(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def slow_exponential(seed: int, row: int, step: int, number: int) -> float:
    key = hashlib.blake2b(f"{seed} {row} {step}".encode(), digest_size=8).digest()
    inner, outer = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:], "little")
    bits = slow_mix(slow_mix(number) ^ inner) ^ outer
    signed = bits - 2**32 if bits >= 2**31 else bits
    return -math.log1p(-min(abs(signed + 0.5) / 2**31, 1 - 2**-24))


def test_the_numbers_are_these_for_ever() -> None:
    """Reproducible across versions and devices: what a seed draws is part of what it promises."""
    keys = race_keys(7, [0, 12], [3, 4], CPU)
    found = exponentials(keys, torch.arange(-500, 1000))
    for place, (row, step) in enumerate([(0, 3), (12, 4)]):
        expected = [slow_exponential(7, row, step, number % 2**32) for number in range(-500, 1000)]
        assert found[place].tolist() == pytest.approx(expected, rel=1e-5)
    assert slow_exponential(0, 0, 0, 0) == pytest.approx(1.1983865)


def test_a_draw_is_this_for_ever() -> None:
    """Block b has the number -1 - b, a token its id: 300 blocks of 256 tokens, the winner found by hand."""
    probabilities = torch.rand(1, 76_800, generator=torch.Generator().manual_seed(0))
    blocks = probabilities.view(300, 256)
    arrivals = [slow_exponential(7, 12, 3, (-1 - block) % 2**32) / blocks[block].sum().item() for block in range(300)]
    winner = arrivals.index(min(arrivals))
    tokens = range(winner * 256, winner * 256 + 256)
    arrivals = [slow_exponential(7, 12, 3, token) / probabilities[0, token].item() for token in tokens]
    assert draw(probabilities, seed=7, rows=[12], steps=[3]).tolist() == [tokens[arrivals.index(min(arrivals))]]
