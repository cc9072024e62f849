"""Advantages without a value function, by value and against loops that are as slow as they are plain."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignkit.ppo.advantage import moments, whiten
from alignkit.ppo.group_advantage import dr_grpo, grpo, rloo

NAN = math.nan
Rewards = list[list[float | None]]


def tensors(rewards: Rewards) -> tuple[Tensor, Tensor]:
    """R in float64, not a number where there is none, and where there is one."""
    values = [[NAN if reward is None else reward for reward in group] for group in rewards]
    return torch.tensor(values, dtype=torch.float64), torch.tensor([[r is not None for r in g] for g in rewards])


def test_grpo_by_value() -> None:
    # mean 2, std with n − 1: √(((−1)² + 0 + 1²) / 2) = 1
    advantages = grpo(*tensors([[1.0, 2.0, 3.0]]))
    assert advantages[0].tolist() == pytest.approx([-1 / 1.0001, 0.0, 1 / 1.0001], abs=1e-12)


def test_dr_grpo_by_value() -> None:
    assert dr_grpo(*tensors([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])).tolist() == [[-2.0, -1.0, 3.0], [-1.0, -1.0, 2.0]]


def test_rloo_by_value() -> None:
    # 1 − (2 + 6) / 2, 2 − (1 + 6) / 2, 6 − (1 + 2) / 2
    assert rloo(*tensors([[1.0, 2.0, 6.0]]))[0].tolist() == pytest.approx([-3.0, -1.5, 4.5], abs=1e-12)


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, -250.7])
def test_a_group_that_is_all_alike_teaches_exactly_nothing(estimator: Callable[..., Tensor], reward: float) -> None:
    rounded = reward * (1 + 2.0**-23)
    rewards, scored = tensors([[reward] * 7, [reward, rounded, reward, reward, None, rounded, reward]])
    assert estimator(rewards, scored).eq(0).all()
    assert estimator(rewards + 5e-4 * torch.eye(7, dtype=torch.float64)[:2], scored, rounding=1e-3).eq(0).all()
    assert estimator(rewards + 1e-2 * torch.eye(7, dtype=torch.float64)[:2], scored, rounding=1e-3).ne(0).any(-1).all()


@pytest.mark.parametrize("estimator", [grpo, dr_grpo, rloo])
def test_a_completion_without_a_score_has_no_part_in_its_group(estimator: Callable[..., Tensor]) -> None:
    with_gaps = estimator(*tensors([[1.0, None, 2.0, 6.0], [None, None, 5.0, None], [None] * 4]))
    alone = estimator(*tensors([[1.0, 2.0, 6.0]]))
    assert with_gaps[0, [0, 2, 3]].tolist() == alone[0].tolist()
    assert with_gaps[0, 1] == 0
    assert with_gaps[1:].eq(0).all()  # of one alone there is nothing to compare


def slow_grpo(known: list[float], reward: float) -> float:
    return (reward - statistics.fmean(known)) / (statistics.stdev(known) + 1e-4) if len(known) > 1 else 0.0


def slow_dr_grpo(known: list[float], reward: float) -> float:
    return reward - statistics.fmean(known)


def slow_rloo(known: list[float], reward: float) -> float:
    others = list(known)
    others.remove(reward)
    return reward - statistics.fmean(others) if others else 0.0


@pytest.mark.parametrize(("estimator", "slow"), [(grpo, slow_grpo), (dr_grpo, slow_dr_grpo), (rloo, slow_rloo)])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_against_a_slow_loop(estimator: Callable[..., Tensor], slow: Callable[..., float], size: int) -> None:
    draw = random.Random(size)
    rewards: Rewards = [[None if draw.random() < 0.1 else draw.gauss(0, 3) for _ in range(size)] for _ in range(50)]
    found = estimator(*tensors(rewards))
    for g, group in enumerate(rewards):
        known = [reward for reward in group if reward is not None]
        for k, reward in enumerate(group):
            expected = 0.0 if reward is None else slow(known, reward)
            assert found[g, k].item() == pytest.approx(expected, rel=0, abs=1e-12)


def test_reinforce_with_a_baseline_against_a_slow_loop() -> None:
    """The advantage of a completion counts once for each of its tokens where mean and variance are taken."""
    draw = random.Random(1)
    rewards = [[draw.gauss(0, 3) for _ in range(4)] for _ in range(6)]
    lengths = [[draw.randint(1, 9) for _ in range(4)] for _ in range(6)]
    mask_BT = torch.arange(9) < torch.tensor(lengths).view(-1, 1)
    advantages_GK = dr_grpo(torch.tensor(rewards, dtype=torch.float64), mask_BT.any(-1).view(6, 4))
    spread_BT = advantages_GK.view(-1, 1).expand(-1, 9)
    found_BT = whiten(spread_BT, mask_BT, moments(spread_BT, mask_BT))
    tokens = [
        reward - statistics.fmean(group)
        for group, of_group in zip(rewards, lengths, strict=True)
        for reward, length in zip(group, of_group, strict=True)
        for _ in range(length)
    ]
    spread = math.sqrt(statistics.pvariance(tokens) + 1e-8)
    expected = [(value - statistics.fmean(tokens)) / spread for value in tokens]
    assert found_BT[mask_BT].tolist() == pytest.approx(expected, rel=0, abs=1e-12)
