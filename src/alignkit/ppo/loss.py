"""The losses of PPO. Each is a sum over the tokens of a piece of a minibatch, divided by `num_tokens`.

With the number of tokens in the global minibatch, the losses of its pieces (gradient accumulation, processes) add up to
the loss of the whole, and so do their gradients; a mean over each piece would weigh tokens by how the batch happened to
be cut. Under data parallelism, which averages gradients over processes, multiply the loss by the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The clipped surrogate of one piece of a minibatch; all but `ratio_max` add up over its pieces.

    Attributes:
        loss: scalar with gradient.
        clip_fraction: share of tokens whose gradient the clipping has cut off.
        approx_kl: KL(π_old ‖ π) in nats per token, by k3.
        ratio_max: the largest π / π_old; 0 without tokens.
    """

    loss: Tensor
    clip_fraction: Tensor
    approx_kl: Tensor
    ratio_max: Tensor


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """The value loss of one piece of a minibatch; both add up over its pieces.

    Attributes:
        loss: scalar with gradient.
        clip_fraction: share of tokens where the clipped value was the worse one.
    """

    loss: Tensor
    clip_fraction: Tensor


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_range: float,
    num_tokens: int | Tensor,
) -> PolicyLoss:
    """Compute −Σ min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) / num_tokens with ρ = π / π_old (Schulman et al. 2017, eq. 7).

    Args:
        logprobs_BT: of the drawn tokens under the policy in training.
        old_logprobs_BT: under the policy that drew them, without gradient.
        advantages_BT: how much better than expected, without gradient.
        mask_BT: where there are tokens.
        clip_range: ε, above 0.
        num_tokens: in the global minibatch.
    """
    log_ratio_BT = (logprobs_BT - old_logprobs_BT).masked_fill(~mask_BT, 0.0)
    advantages_BT = advantages_BT.masked_fill(~mask_BT, 0.0)
    ratio_BT = log_ratio_BT.exp()
    plain_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1 - clip_range, 1 + clip_range) * advantages_BT
    loss = -torch.minimum(plain_BT, clipped_BT).sum() / num_tokens
    with torch.no_grad():
        return PolicyLoss(
            loss=loss,
            clip_fraction=(clipped_BT < plain_BT).sum() / num_tokens,
            approx_kl=(torch.expm1(log_ratio_BT) - log_ratio_BT).sum() / num_tokens,
            ratio_max=ratio_BT.masked_fill(~mask_BT, 0.0).amax(),
        )


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_range: float,
    num_tokens: int | Tensor,
) -> ValueLoss:
    """Compute ½ Σ max((V − R)², (clip(V, V_old ± ε) − R)²) / num_tokens.

    The paper has no clipping here; it is that of its authors' code (openai/baselines, ppo2) and of Ziegler et al.'s.

    Args:
        values_BT: V under the value function in training.
        old_values_BT: V when the tokens were drawn, without gradient.
        returns_BT: R, the values in hindsight, without gradient.
        mask_BT: where there are tokens.
        clip_range: ε, above 0; infinity does not clip.
        num_tokens: in the global minibatch.
    """
    values_BT, old_values_BT, returns_BT = (
        tensor.masked_fill(~mask_BT, 0.0) for tensor in (values_BT, old_values_BT, returns_BT)
    )
    near_BT = values_BT.clamp(old_values_BT - clip_range, old_values_BT + clip_range)
    plain_BT, clipped_BT = (values_BT - returns_BT).square(), (near_BT - returns_BT).square()
    return ValueLoss(
        loss=torch.maximum(plain_BT, clipped_BT).sum() / 2 / num_tokens,
        clip_fraction=(clipped_BT > plain_BT).sum() / num_tokens,
    )


def token_entropies(logits_BTV: Tensor) -> Tensor:
    """Compute the entropy −Σ p ln p of each row of finite logits, `[..., V]` → `[...]` in nats, with gradient."""
    return logits_BTV.logsumexp(-1) - (logits_BTV.softmax(-1) * logits_BTV).sum(-1)


def entropy_bonus(entropies_BT: Tensor, mask_BT: Tensor, *, num_tokens: int | Tensor) -> Tensor:
    """Compute Σ H / num_tokens: times its coefficient, it lowers the loss of a policy that keeps exploring.

    Schulman et al. 2017, the last term of eq. 9.
    """
    return entropies_BT.masked_fill(~mask_BT, 0.0).sum() / num_tokens
