"""From scores to advantages: the reward of each token, and how much better it went than expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignkit.ppo.kl import token_kl

_EPSILON = 2.0**-23  # of float32


def token_rewards(
    scores_B: Tensor, old_logprobs_BT: Tensor, ref_logprobs_BT: Tensor | None, mask_BT: Tensor, *, kl_coef: float
) -> Tensor:
    """Compute the reward of each token: −β (ln π_old − ln π_ref), plus the row's score at its last token.

    Ziegler et al. 2019, eq. 2, written token by token; Ouyang et al. 2022, eq. 2, without the pretraining term.

    Args:
        scores_B: one per completion. That of a row without any token has nowhere to go and is left out.
        old_logprobs_BT: under the policy that drew the tokens.
        ref_logprobs_BT: under the reference; None where there is none, and no penalty.
        mask_BT: where there are tokens.
        kl_coef: β, at least 0.

    Returns:
        `[B, T]`, 0 where there is no token.
    """
    positions_T = torch.arange(mask_BT.shape[-1], device=mask_BT.device)
    last_B1 = positions_T.where(mask_BT, -1).amax(-1, keepdim=True)
    rewards_BT = torch.where(positions_T == last_B1, scores_B[:, None], 0.0)
    if ref_logprobs_BT is None:
        return rewards_BT
    return rewards_BT - kl_coef * token_kl(old_logprobs_BT, ref_logprobs_BT, mask_BT, estimator="k1")


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Compute generalized advantage estimates (Schulman et al. 2016, eq. 16).

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}, where V and A are 0 after a row's last token.
    λ = 0 trusts the values (A = δ), λ = 1 the rewards (the discounted sum of rewards to come − V).

    Args:
        rewards_BT: of each token.
        values_BT: V_t, what was expected before token t.
        mask_BT: where there are tokens; each row's in one run.
        gamma: discount, from 0 to 1.
        lam: from 0 to 1.

    Returns:
        Advantages and returns (advantages + values), `[B, T]` each, 0 where there is no token.
    """
    rewards_BT = rewards_BT.masked_fill(~mask_BT, 0.0)
    values_BT = values_BT.masked_fill(~mask_BT, 0.0)
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = next_advantage_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(mask_BT.shape[-1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        next_advantage_B = (delta_B + gamma * lam * next_advantage_B).masked_fill(~mask_BT[:, t], 0.0)
        next_value_B = values_BT[:, t]
        advantages_BT[:, t] = next_advantage_B
    return advantages_BT, advantages_BT + values_BT


def returns_to_go(rewards_BT: Tensor, mask_BT: Tensor, *, gamma: float) -> Tensor:
    """Compute G_t = Σ_{u ≥ t} γ^{u − t} r_u, what is still to come (REINFORCE++, Hu 2025; Williams 1992).

    Args:
        rewards_BT: r of each token.
        mask_BT: where there are tokens; each row's in one run.
        gamma: γ, the discount, from 0 to 1.

    Returns:
        `[B, T]`, 0 where there is no token.
    """
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma=gamma, lam=1.0)[0]


def moments(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return number, sum and sum of squares of the masked values, `[3]` in float64.

    Those of several batches or processes add up to those of all, which is what `whiten` is to be given.
    """
    values = values_BT[mask_BT].double()
    return torch.stack([torch.full_like(values.sum(), values.numel()), values.sum(), values.square().sum()])


def rounding_of(mask_BT: Tensor, *terms_BT: Tensor) -> Tensor:
    """Bound by how much advantages that are equal may differ because their terms were added up in float32.

    Args:
        mask_BT: where there are tokens.
        *terms_BT: what they are computed from, such as rewards, log-probabilities times β, and values.
    """
    largest = torch.stack([term_BT.masked_fill(~mask_BT, 0.0).abs().max() for term_BT in terms_BT]).sum()
    return 4 * _EPSILON * math.sqrt(mask_BT.shape[-1]) * largest.double()


def whiten(values_BT: Tensor, mask_BT: Tensor, moments_3: Tensor, *, rounding: Tensor | float = 0.0) -> Tensor:
    """Shift and scale to mean 0 and (biased) variance 1 over all tokens that went into the moments.

    Args:
        values_BT: such as advantages.
        mask_BT: where there are tokens.
        moments_3: of the global batch (see `moments`).
        rounding: standard deviation up to which values count as alike (see `rounding_of`); their own rounding does in
            any case.

    Returns:
        `[B, T]`, 0 where there is no token; values that are all alike become 0: there is nothing to learn, and what is
        left of them is rounding, which a division by √1e-8 would make 10⁴ times larger.
    """
    count, total, squares = moments_3.unbind()
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0.0)
    alike = variance.sqrt() <= torch.maximum(4 * _EPSILON * (squares / count).sqrt(), torch.as_tensor(rounding))
    # The 1e-8 is lm-human-preferences': it keeps all but vanishing variances as they are.
    whitened_BT = (values_BT.double() - mean) * (variance + 1e-8).rsqrt()
    return whitened_BT.masked_fill(~mask_BT | alike, 0.0).to(values_BT.dtype)
