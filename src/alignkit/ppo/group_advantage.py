"""Advantages without a value function: each completion beside the others of its prompt, its group.

Shapes: G groups of K completions. A completion without a score has no part in its group, and no advantage. A group
whose rewards are all alike has advantages of exactly 0: what is left of their difference is rounding, of which an
optimizer that divides by the size of gradients would make whole steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.choices import Advantage

_EPSILON = 2.0**-23  # of float32, in which rewards are added up


def dr_grpo(rewards_GK: Tensor, scored_GK: Tensor, *, rounding: Tensor | float = 0.0) -> Tensor:
    """Compute A_i = R_i − mean R of the group (Liu et al. 2025, §3.2).

    Args:
        rewards_GK: R of each completion.
        scored_GK: true where there is a reward.
        rounding: difference up to which rewards count as alike; their own rounding in float32 does in any case.

    Returns:
        `[G, K]`, 0 where there is no reward.
    """
    rewards_GK = rewards_GK.masked_fill(~scored_GK, 0.0)
    mean_G1 = rewards_GK.sum(-1, keepdim=True) / _count(scored_GK)
    centered_GK = (rewards_GK - mean_G1).masked_fill(~scored_GK, 0.0)
    return centered_GK.masked_fill(_alike(rewards_GK, scored_GK, rounding), 0.0)


def grpo(rewards_GK: Tensor, scored_GK: Tensor, *, rounding: Tensor | float = 0.0) -> Tensor:
    """Compute A_i = (R_i − mean R) / (std R + 1e-4) over the group, std with n − 1 (Shao et al. 2024, §4.1.2).

    The 1e-4 is TRL's; arguments and result are those of `dr_grpo`.
    """
    centered_GK = dr_grpo(rewards_GK, scored_GK, rounding=rounding)
    others_G1 = (_count(scored_GK) - 1).clamp(min=1)
    return centered_GK / ((centered_GK.square().sum(-1, keepdim=True) / others_G1).sqrt() + 1e-4)


def rloo(rewards_GK: Tensor, scored_GK: Tensor, *, rounding: Tensor | float = 0.0) -> Tensor:
    """Compute A_i = R_i − mean R of the other K − 1 (Ahmadian et al. 2024, §2.3), which is K / (K − 1) (R_i − mean R).

    Arguments and result are those of `dr_grpo`.
    """
    count_G1 = _count(scored_GK)
    return dr_grpo(rewards_GK, scored_GK, rounding=rounding) * count_G1 / (count_G1 - 1).clamp(min=1)


# REINFORCE++-baseline is whitened afterwards, over the tokens of the rollout.
GROUP_ADVANTAGES: dict[Advantage, Callable[..., Tensor]] = {
    Advantage.grpo: grpo,
    Advantage.dr_grpo: dr_grpo,
    Advantage.rloo: rloo,
    Advantage.reinforce_baseline: dr_grpo,
}


def _count(scored_GK: Tensor) -> Tensor:
    """How many completions of each group have a reward, `[G, 1]`; at least 1, to divide by."""
    return scored_GK.sum(-1, keepdim=True).clamp(min=1)


def _alike(rewards_GK: Tensor, scored_GK: Tensor, rounding: Tensor | float) -> Tensor:
    """True for the groups, `[G, 1]`, whose rewards differ by no more than rounding."""
    spread_G1 = _largest(rewards_GK, scored_GK) + _largest(-rewards_GK, scored_GK)
    own_G1 = 4 * _EPSILON * rewards_GK.abs().amax(-1, keepdim=True)
    return spread_G1 <= torch.maximum(own_G1, torch.as_tensor(rounding))


def _largest(values_GK: Tensor, scored_GK: Tensor) -> Tensor:
    return values_GK.masked_fill(~scored_GK, -torch.inf).amax(-1, keepdim=True)
