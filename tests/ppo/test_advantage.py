from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.ppo.advantage import gae, moments, returns_to_go, token_rewards, whiten

NAN = math.nan
number = st.floats(-5, 5, width=32)
unit = st.floats(0, 1)


@st.composite
def batch(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[int], int]:
    """Two grids of numbers, the length of each row and the width; what lies past the length is not a number."""
    width = draw(st.integers(1, 7))
    lengths = draw(st.lists(st.integers(0, width), min_size=1, max_size=4))
    grids = [[draw(st.lists(number, min_size=n, max_size=n)) + [NAN] * (width - n) for n in lengths] for _ in range(2)]
    return grids[0], grids[1], lengths, width


def mask_of(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def test_token_rewards_by_value() -> None:
    old = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, NAN, NAN], [NAN, NAN, NAN]])
    ref = torch.tensor([[-1.5, -2.0, -2.0], [-3.0, NAN, 0.0], [NAN, NAN, NAN]])
    scores = torch.tensor([10.0, -1.0, 7.0])
    rewards = token_rewards(scores, old, ref, mask_of([3, 1, 0], 3), kl_coef=0.1)
    expected = [[-0.05, 0, 10 + 0.1], [-1 - 0.2, 0, 0], [0, 0, 0]]
    assert rewards.tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


@given(batch(), st.lists(number, min_size=4, max_size=4), st.floats(0, 2))
def test_token_rewards_sum_to_the_score_less_the_penalty(
    rows: tuple[list[list[float]], list[list[float]], list[int], int], scores: list[float], kl_coef: float
) -> None:
    old, ref, lengths, width = rows
    rewards = token_rewards(
        torch.tensor(scores[: len(old)]), torch.tensor(old), torch.tensor(ref), mask_of(lengths, width), kl_coef=kl_coef
    )
    for b, length in enumerate(lengths):
        slow = [-kl_coef * (old[b][t] - ref[b][t]) for t in range(length)] + [0.0] * (width - length)
        if length:
            slow[length - 1] += scores[b]
        assert rewards[b].tolist() == pytest.approx(slow, rel=1e-5, abs=1e-5)


def test_gae_by_value() -> None:
    # δ = 1 + 0.5·3 − 2, 0 + 0.5·4 − 3, 5 − 4 = 0.5, −1, 1; A_t = δ_t + 0.25 A_{t+1}
    rewards, values = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[2.0, 3.0, 4.0]])
    advantages, returns = gae(rewards, values, mask_of([3], 3), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.5 - 0.25 * 0.75, -0.75, 1.0]]
    assert returns.tolist() == [[2.3125, 2.25, 5.0]]


def test_gae_ends_with_the_row() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, NAN], [NAN] * 3]), torch.tensor([[2.0, 3.0, 99.0], [NAN] * 3])
    advantages, returns = gae(rewards, values, mask_of([2, 0], 3), gamma=1.0, lam=1.0)
    assert advantages.tolist() == [[-1.0, -3.0, 0.0], [0.0] * 3]
    assert returns.tolist() == [[1.0, 0.0, 0.0], [0.0] * 3]


@given(batch(), unit, unit)
def test_gae_against_the_sum_that_defines_it(
    rows: tuple[list[list[float]], list[list[float]], list[int], int], gamma: float, lam: float
) -> None:
    rewards, values, lengths, width = rows
    advantages, returns = gae(
        torch.tensor(rewards), torch.tensor(values), mask_of(lengths, width), gamma=gamma, lam=lam
    )
    for b, length in enumerate(lengths):
        after = [*values[b][1:length], 0.0]
        deltas = [rewards[b][t] + gamma * after[t] - values[b][t] for t in range(length)]
        for t in range(length):
            slow = sum((gamma * lam) ** (u - t) * deltas[u] for u in range(t, length))
            assert advantages[b, t].item() == pytest.approx(slow, rel=1e-4, abs=1e-4)
            assert returns[b, t].item() == pytest.approx(slow + values[b][t], rel=1e-4, abs=1e-4)
        assert advantages[b, length:].tolist() == returns[b, length:].tolist() == [0.0] * (width - length)


def test_gae_works_on_left_padding_too() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[2.0, 3.0, 4.0]])
    plain, _ = gae(rewards, values, mask_of([3], 3), gamma=0.9, lam=0.8)
    padding = torch.full((1, 2), NAN)
    mask = torch.tensor([[False, False, True, True, True]])
    padded, _ = gae(torch.cat([padding, rewards], 1), torch.cat([padding, values], 1), mask, gamma=0.9, lam=0.8)
    assert padded.tolist() == [[0.0, 0.0, *plain[0].tolist()]]


def test_returns_to_go_by_value() -> None:
    rewards = torch.tensor([[1.0, 0.0, 4.0], [3.0, NAN, NAN]])
    assert returns_to_go(rewards, mask_of([3, 1], 3), gamma=0.5).tolist() == [[2.0, 2.0, 4.0], [3.0, 0.0, 0.0]]


def test_without_a_reference_the_reward_of_a_token_is_the_score_alone() -> None:
    rewards = token_rewards(torch.tensor([2.0]), torch.tensor([[-1.0, -2.0]]), None, mask_of([2], 2), kl_coef=0.1)
    assert rewards.tolist() == [[0.0, 2.0]]


def test_in_float64_gae_returns_to_go_and_whitening_are_those_of_slow_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 9, generator=generator, dtype=torch.float64)
    lengths = [9, 1, 4, 7, 3, 9]
    mask = mask_of(lengths, 9)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    to_go = returns_to_go(rewards, mask, gamma=0.9)
    for b, length in enumerate(lengths):
        next_advantage = next_value = next_return = 0.0
        for t in reversed(range(length)):
            delta = rewards[b, t].item() + 0.9 * next_value - values[b, t].item()
            next_advantage, next_value = delta + 0.9 * 0.8 * next_advantage, values[b, t].item()
            next_return = rewards[b, t].item() + 0.9 * next_return
            assert advantages[b, t].item() == pytest.approx(next_advantage, rel=0, abs=1e-12)
            assert to_go[b, t].item() == pytest.approx(next_return, rel=0, abs=1e-12)
    tokens = to_go[mask].tolist()
    spread = math.sqrt(statistics.pvariance(tokens) + 1e-8)
    expected = [(token - statistics.fmean(tokens)) / spread for token in tokens]
    assert whiten(to_go, mask, moments(to_go, mask))[mask].tolist() == pytest.approx(expected, rel=0, abs=1e-12)


def test_whiten_by_value() -> None:
    values, mask = torch.tensor([[1.0, 3.0, NAN], [5.0, NAN, NAN]]), mask_of([2, 1], 3)
    # mean 3, biased variance 8/3
    unit_step = 2 / math.sqrt(8 / 3)
    assert moments(values, mask).tolist() == [3, 9, 35]
    expected = [[-unit_step, 0, 0], [unit_step, 0, 0]]
    assert whiten(values, mask, moments(values, mask)).tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


@given(batch())
def test_whiten_against_statistics(
    rows: tuple[list[list[float]], list[list[float]], list[int], int],
) -> None:
    grid, _, lengths, width = rows
    values, mask = torch.tensor(grid), mask_of(lengths, width)
    flat = [x for row, length in zip(grid, lengths, strict=True) for x in row[:length]]
    whitened = whiten(values, mask, moments(values, mask))
    assert whitened[~mask].eq(0).all()
    if flat:
        mean, deviation = statistics.fmean(flat), math.sqrt(statistics.pvariance(flat) + 1e-8)
        slow = [(x - mean) / deviation for x in flat]
        assert whitened[mask].tolist() == pytest.approx(slow, rel=1e-3, abs=1e-3)


def test_whiten_of_pieces_is_whiten_of_the_whole() -> None:
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 4 + 100
    mask = mask_of([5, 1, 0, 3, 2, 4], 5)
    whole = whiten(values, mask, moments(values, mask))
    summed = moments(values[:2], mask[:2]) + moments(values[2:], mask[2:])
    pieces = torch.cat([whiten(values[:2], mask[:2], summed), whiten(values[2:], mask[2:], summed)])
    assert torch.allclose(pieces, whole, atol=1e-6)
    assert whole[mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert whole[mask].square().mean().item() == pytest.approx(1, abs=1e-5)


def test_values_that_are_all_alike_become_nothing() -> None:
    values, mask = torch.full((2, 3), 1234.5678), mask_of([3, 2], 3)
    assert whiten(values, mask, moments(values, mask)).abs().max() < 1e-3
