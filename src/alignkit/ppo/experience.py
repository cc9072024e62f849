"""A scored rollout as tensors: what the optimizer steps of an update learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.choices import Advantage, KlAs
from alignkit.config import PpoConfig
from alignkit.ppo.advantage import gae, moments, returns_to_go, rounding_of, token_rewards, whiten
from alignkit.ppo.group_advantage import GROUP_ADVANTAGES


@dataclass(frozen=True, slots=True)
class RolloutTensors:
    """A rollout as the optimizer steps of an update need it: `[B, T]` each, B in the order of the rollout.

    Attributes:
        mask_BT: true where there are tokens; a completion without a score has none.
        trained_BT: true where there are tokens to learn from: those of a completion that is left out of the loss are
            in `mask_BT` alone.
        logprobs_BT: ln π_old of the drawn tokens, under the policy that drew them.
        ref_logprobs_BT: ln π_ref of the same tokens, under the reference; None where there is none.
        entropies_BT: of the policy's distribution before each token, in nats.
        values_BT: V_old, expected before each token; None without a value function.
        rewards_BT: of each token: the KL penalty, where it is part of the reward, and the score at the last token.
        advantages_BT: A, how much better it went than expected, whitened over the whole rollout where asked for.
        returns_BT: R, what the values should have been; None without a value function.
    """

    mask_BT: Tensor
    trained_BT: Tensor
    logprobs_BT: Tensor
    ref_logprobs_BT: Tensor | None
    entropies_BT: Tensor
    values_BT: Tensor | None
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor | None


def experience(
    scores_B: Tensor,
    mask_BT: Tensor,
    *,
    trained_BT: Tensor,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor | None,
    entropies_BT: Tensor,
    values_BT: Tensor | None,
    ppo: PpoConfig,
    kl_coef: float,
) -> RolloutTensors:
    """Add rewards, advantages and returns to what policy, reference and value function make of a rollout.

    Args:
        scores_B: to learn from, one for each completion; those of a group lie together.
        mask_BT: where there are tokens of completions with a score.
        trained_BT: where there are tokens to learn from.
        logprobs_BT: under the policy that drew the tokens.
        ref_logprobs_BT: under the reference; None where there is none.
        entropies_BT: of the policy's distribution before each token.
        values_BT: expected before each token; None without a value function.
        ppo: the section, settled: the estimator and its settings.
        kl_coef: β of this update.
    """
    beta = kl_coef if ppo.kl_as is KlAs.reward else 0.0
    rewards_BT = token_rewards(scores_B, logprobs_BT, ref_logprobs_BT, mask_BT, kl_coef=beta)
    returns_BT: Tensor | None = None
    if ppo.advantage is Advantage.gae:
        assert values_BT is not None
        assert ppo.gamma is not None
        assert ppo.lam is not None
        advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=ppo.gamma, lam=ppo.lam)
    elif ppo.advantage is Advantage.reinforce:
        assert ppo.gamma is not None
        advantages_BT = returns_to_go(rewards_BT, mask_BT, gamma=ppo.gamma)
    else:
        advantages_BT = _group_advantages(rewards_BT, mask_BT, ppo, rounding_of(mask_BT, beta * logprobs_BT))
    if ppo.whiten_advantages:
        terms = [rewards_BT, beta * logprobs_BT, *([] if values_BT is None else [values_BT])]
        all_3 = moments(advantages_BT, trained_BT)
        advantages_BT = whiten(advantages_BT, trained_BT, all_3, rounding=rounding_of(mask_BT, *terms))
    return RolloutTensors(
        mask_BT,
        trained_BT,
        logprobs_BT,
        ref_logprobs_BT,
        entropies_BT,
        values_BT,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT.masked_fill(~trained_BT, 0.0),
        returns_BT=returns_BT,
    )


def _group_advantages(rewards_BT: Tensor, mask_BT: Tensor, ppo: PpoConfig, rounding: Tensor) -> Tensor:
    """The advantage of each completion, at each of its tokens."""
    rewards_GK = rewards_BT.double().sum(-1).view(-1, ppo.num_generations)
    scored_GK = mask_BT.any(-1).view(-1, ppo.num_generations)
    advantages_GK = GROUP_ADVANTAGES[ppo.advantage](rewards_GK, scored_GK, rounding=rounding)
    return torch.where(mask_BT, advantages_GK.view(-1, 1), 0.0).to(rewards_BT.dtype)
