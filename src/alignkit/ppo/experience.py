"""A scored rollout as tensors: what the optimizer steps of an update learn from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from alignkit.config import PpoConfig
from alignkit.ppo.advantage import gae, moments, rounding_of, token_rewards, whiten


@dataclass(frozen=True, slots=True)
class RolloutTensors:
    """A rollout as the optimizer steps of an update need it: `[B, T]` each, B in the order of the rollout.

    Attributes:
        mask_BT: true where there are tokens to learn from; a completion without a score has none.
        logprobs_BT: ln π_old of the drawn tokens, under the policy that drew them.
        ref_logprobs_BT: ln π_ref of the same tokens, under the reference.
        entropies_BT: of the policy's distribution before each token, in nats.
        values_BT: V_old, expected before each token.
        rewards_BT: of each token: the KL penalty, and the score at the last token.
        advantages_BT: A, how much better it went than expected, whitened over the whole rollout where asked for.
        returns_BT: R, what the values should have been.
    """

    mask_BT: Tensor
    logprobs_BT: Tensor
    ref_logprobs_BT: Tensor
    entropies_BT: Tensor
    values_BT: Tensor
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor


def experience(
    scores_B: Tensor,
    mask_BT: Tensor,
    *,
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    entropies_BT: Tensor,
    values_BT: Tensor,
    ppo: PpoConfig,
    kl_coef: float,
) -> RolloutTensors:
    """Add rewards, advantages and returns to what policy, reference and value function make of a rollout.

    Args:
        scores_B: to learn from, one for each completion.
        mask_BT: where there are tokens to learn from.
        logprobs_BT: under the policy that drew the tokens.
        ref_logprobs_BT: under the reference.
        entropies_BT: of the policy's distribution before each token.
        values_BT: expected before each token.
        ppo: γ, λ and whether to whiten.
        kl_coef: β of this update.
    """
    rewards_BT = token_rewards(scores_B, logprobs_BT, ref_logprobs_BT, mask_BT, kl_coef=kl_coef)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=ppo.gamma, lam=ppo.lam)
    if ppo.whiten_advantages:
        rounding = rounding_of(mask_BT, rewards_BT, values_BT, kl_coef * logprobs_BT)
        advantages_BT = whiten(advantages_BT, mask_BT, moments(advantages_BT, mask_BT), rounding=rounding)
    return RolloutTensors(
        mask_BT,
        logprobs_BT,
        ref_logprobs_BT,
        entropies_BT,
        values_BT,
        rewards_BT=rewards_BT,
        advantages_BT=advantages_BT,
        returns_BT=returns_BT,
    )
