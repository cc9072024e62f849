"""The losses of PPO. Each is a sum over the tokens of a piece of a minibatch, divided by what belongs to the whole.

With divisors of the global minibatch, the losses of its pieces (gradient accumulation, processes) add up to the loss of
the whole, and so do their gradients; a mean over each piece would weigh tokens by how the batch happened to be cut.
Under data parallelism, which averages gradients over processes, multiply the loss by the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkit.choices import LossOver, RatioOver
from alignkit.ppo.kl import token_kl


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


def loss_divisors(mask_BT: Tensor, over: LossOver, *, max_new_tokens: int) -> Tensor:
    """Compute what the sum over the tokens of each completion is divided by, `[B]`, so that all add up to the average.

    `tokens` is a mean over the tokens of the minibatch (DAPO, Yu et al. 2025, eq. 8); `completions` a mean over the
    completions of each one's mean (GRPO, Shao et al. 2024, eq. 3); `constant` a sum that no length divides (Dr. GRPO,
    Liu et al. 2025, §3.2).

    Args:
        mask_BT: where there are tokens to learn from, of the global minibatch; the mean of `completions` is over those
            that have one.
        over: which of the three.
        max_new_tokens: the longest a completion can be, of `constant`.
    """
    lengths_B = mask_BT.sum(-1)
    if over is LossOver.tokens:
        return lengths_B.sum().clamp(min=1).expand(len(mask_BT))
    if over is LossOver.completions:
        return lengths_B.clamp(min=1) * mask_BT.any(-1).sum().clamp(min=1)
    return torch.full_like(lengths_B, len(mask_BT) * max_new_tokens)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_range: float,
    num_tokens: int | Tensor,
    divisors_B: Tensor | None = None,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    ratio_over: RatioOver = RatioOver.token,
) -> PolicyLoss:
    """Compute −Σ min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) / divisor with ρ = π / π_old (Schulman et al. 2017, eq. 7).

    Args:
        logprobs_BT: of the drawn tokens under the policy in training.
        old_logprobs_BT: under the policy that drew them, without gradient.
        advantages_BT: how much better than expected, without gradient.
        mask_BT: where there are tokens.
        clip_range: ε, above 0.
        num_tokens: in the global minibatch.
        divisors_B: what each completion's sum is divided by (see `loss_divisors`); None is `num_tokens`.
        clip_range_high: ε above 1 (DAPO, Yu et al. 2025, eq. 10); None is `clip_range`.
        dual_clip: c, above 1: where A < 0 the clipped objective is at least c A (Ye et al. 2020, eq. 5).
        ratio_over: `completion` takes ρ^(1/|y|) of the whole completion at each of its tokens (GSPO, Zheng et al. 2025,
            eq. 7).
    """
    log_ratio_BT = (logprobs_BT - old_logprobs_BT).masked_fill(~mask_BT, 0.0)
    advantages_BT = advantages_BT.masked_fill(~mask_BT, 0.0)
    ratio_BT = (
        _over_completion(log_ratio_BT, mask_BT).exp() if ratio_over is RatioOver.completion else log_ratio_BT.exp()
    )
    plain_BT = ratio_BT * advantages_BT
    high = clip_range if clip_range_high is None else clip_range_high
    objective_BT = torch.minimum(plain_BT, ratio_BT.clamp(1 - clip_range, 1 + high) * advantages_BT)
    if dual_clip is not None:
        objective_BT = torch.where(advantages_BT < 0, objective_BT.maximum(dual_clip * advantages_BT), objective_BT)
    divisors_B1 = num_tokens if divisors_B is None else divisors_B[:, None]
    loss = -(objective_BT / divisors_B1).sum()
    with torch.no_grad():
        return PolicyLoss(
            loss=loss,
            clip_fraction=(objective_BT != plain_BT).sum() / num_tokens,
            approx_kl=(torch.expm1(log_ratio_BT) - log_ratio_BT).sum() / num_tokens,
            ratio_max=ratio_BT.masked_fill(~mask_BT, 0.0).amax(),
        )


def _over_completion(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over each completion's tokens, at each of them."""
    mean_B1 = log_ratio_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return mean_B1.expand_as(log_ratio_BT).masked_fill(~mask_BT, 0.0)


def kl_loss(
    logprobs_BT: Tensor,
    ref_logprobs_BT: Tensor,
    mask_BT: Tensor,
    *,
    divisors_B: Tensor,
    old_logprobs_BT: Tensor | None = None,
) -> Tensor:
    """Compute Σ k3 / divisor, the KL to the reference with a gradient (Shao et al. 2024, eq. 4); β multiplies it.

    Over tokens that the policy itself drew, the gradient of k3 alone is that of KL(π_ref ‖ π) in the mean. That of
    ρ k3, with ρ = π / π_old of each token, is that of KL(π ‖ π_ref) ("Unbiased KL Estimate" of DeepSeek-V3.2, 2025).

    Args:
        logprobs_BT: of the drawn tokens under the policy in training.
        ref_logprobs_BT: under the reference, without gradient.
        mask_BT: where there are tokens.
        divisors_B: what each completion's sum is divided by (see `loss_divisors`).
        old_logprobs_BT: under the policy that drew them, without gradient; None leaves ρ out.
    """
    kl_BT = token_kl(logprobs_BT, ref_logprobs_BT, mask_BT, estimator="k3")
    if old_logprobs_BT is not None:
        kl_BT = kl_BT * (logprobs_BT - old_logprobs_BT).masked_fill(~mask_BT, 0.0).exp()
    return (kl_BT / divisors_B[:, None]).sum()


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
