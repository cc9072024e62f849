"""A scored rollout as tensors: what the epochs of an update learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.config import PpoConfig
from alignkit.ppo.advantage import gae, moments, token_rewards, whiten
from alignkit.ppo.kl import Estimator, sequence_sums, token_kl, token_sum

_MEASURES: dict[str, Estimator] = {"objective/kl": "k1", "objective/kl_k3": "k3"}


@dataclass
class Looked:
    """What policy, value head and reference make of the completions of the whole rollout, `[B, T]` each.

    Attributes:
        logprobs_BT: under the policy that drew them.
        ref_logprobs_BT: under the reference.
        values_BT: expected before each token.
        entropies_BT: of the policy's distribution before each token.
        mask_BT: where there are tokens to learn from; a completion without a score has none.
    """

    logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    values_BT: Tensor
    entropies_BT: Tensor
    mask_BT: Tensor


@dataclass
class Experience:
    """What an update learns from, `[B, T]` each; B in the order of the rollout.

    Attributes:
        old_logprobs_BT: under the policy that drew the tokens.
        old_values_BT: expected then.
        advantages_BT: how much better it went, whitened over the whole rollout where that is asked for.
        returns_BT: what the values should have been.
        mask_BT: where there are tokens.
    """

    old_logprobs_BT: Tensor
    old_values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    mask_BT: Tensor


def experience(looked: Looked, scores_B: Tensor, ppo: PpoConfig, *, kl_coef: float) -> tuple[Experience, Tensor]:
    """Rewards, advantages and returns of a rollout.

    Args:
        looked: at the whole rollout.
        scores_B: to learn from, one for each completion.
        ppo: γ, λ and whether to whiten.
        kl_coef: β of this update.

    Returns:
        The experience, and the rewards of the tokens `[B, T]`.
    """
    mask_BT = looked.mask_BT
    rewards_BT = token_rewards(scores_B, looked.logprobs_BT, looked.ref_logprobs_BT, mask_BT, kl_coef=kl_coef)
    advantages_BT, returns_BT = gae(rewards_BT, looked.values_BT, mask_BT, gamma=ppo.gamma, lam=ppo.lam)
    if ppo.whiten_advantages:
        advantages_BT = whiten(advantages_BT, mask_BT, moments(advantages_BT, mask_BT))
    return Experience(looked.logprobs_BT, looked.values_BT, advantages_BT, returns_BT, mask_BT), rewards_BT


def kl_and_entropy(looked: Looked) -> dict[str, float]:
    """KL to the reference and entropy of a rollout: nats per completion, and per token."""
    mask_BT = looked.mask_BT
    has_tokens_B = mask_BT.any(-1)
    num = max(int(has_tokens_B.sum()), 1)
    measured = {}
    for name, estimator in _MEASURES.items():
        kl_BT = token_kl(looked.logprobs_BT, looked.ref_logprobs_BT, mask_BT, estimator=estimator)
        total, num_tokens = token_sum(kl_BT, mask_BT)
        measured[name] = float(sequence_sums(kl_BT, mask_BT).sum()) / num
        measured[f"{name}_per_token"] = float(total) / max(int(num_tokens), 1)
    total, num_tokens = token_sum(looked.entropies_BT, mask_BT)
    return measured | {"objective/entropy": float(total) / max(int(num_tokens), 1)}


def explained_variance(taken: Experience) -> float:
    """1 − Var(returns − values) / Var(returns): 1 where the values foresaw everything, 0 where a constant does as well.

    0 where the returns are all alike or there are fewer than two.
    """
    returns, values = taken.returns_BT[taken.mask_BT].double(), taken.old_values_BT[taken.mask_BT].double()
    if returns.numel() < 2 or float(returns.var()) == 0:
        return 0.0
    return float(1 - (returns - values).var() / returns.var())


def empty(num_rows: int, length: int, *, device: torch.device) -> Tensor:
    """Zeros `[B, T]` in float32, for processes to fill their own rows of."""
    return torch.zeros(num_rows, length, device=device)
