"""KL divergence of the policy from its reference, and the coefficient β of its penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def token_kl(logprobs_BT: Tensor, ref_logprobs_BT: Tensor, mask_BT: Tensor, *, estimator: Estimator) -> Tensor:
    """Estimate KL(π ‖ π_ref) at each token from the one token that was drawn from π.

    With r = π_ref / π of the drawn token: k1 = −ln r, unbiased but of either sign; k2 = ½ (ln r)², low variance but
    biased; k3 = (r − 1) − ln r, unbiased and never negative (Schulman 2020, "Approximating KL divergence").

    Args:
        logprobs_BT: of the drawn tokens under the policy that drew them.
        ref_logprobs_BT: of the same tokens under the reference.
        mask_BT: where there are tokens.
        estimator: which of the three.

    Returns:
        `[B, T]` in nats, 0 where there is no token.
    """
    minus_log_r_BT = (logprobs_BT - ref_logprobs_BT).masked_fill(~mask_BT, 0.0)
    match estimator:
        case "k1":
            return minus_log_r_BT
        case "k2":
            return minus_log_r_BT.square() / 2
        case "k3":
            # expm1, because near r = 1 the exponential and the 1 would leave nothing but their rounding.
            return torch.expm1(-minus_log_r_BT) + minus_log_r_BT
        case _:
            assert_never(estimator)


def sequence_sums(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over each row's tokens, `[B, T]` → `[B]`; of `token_kl`, nats per completion."""
    return values_BT.masked_fill(~mask_BT, 0.0).sum(-1)


def token_sum(values_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum over all tokens and their number, two scalars that add up over batches and processes.

    Of `token_kl` their quotient is nats per token.
    """
    return values_BT.masked_fill(~mask_BT, 0.0).sum(), mask_BT.sum()


@dataclass
class KLController:
    """The coefficient β of the KL penalty: fixed, or steered towards a target (Ziegler et al. 2019, §2.2).

    After n completions whose mean KL was d, β is multiplied by 1 + clip(d / target − 1, ±max_error) · n /
    horizon: it settles where the KL is the target, and a wild batch moves it no further than a moderate one.

    Attributes:
        coef: β now.
        target: nats per completion; None keeps β fixed.
        horizon: in completions; the smaller, the faster β moves. 10,000 in the code of the paper.
        max_error: bound of the relative error, 0.2 in the paper.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000
    max_error: float = 0.2

    def update(self, kl: float, *, num_rollouts: int) -> None:
        """Steer β after so many rollouts with this mean KL per completion, in nats."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -self.max_error), self.max_error)
            self.coef *= 1 + error * num_rollouts / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
