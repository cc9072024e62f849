"""Log-probabilities of an engine beside those of the trainer: how far apart they are, and the weights that correct it.

The sampler is another program than the trainer, so what it draws is off the policy, by a little (Yao et al. 2025, "Your
Efficient RL Framework Secretly Brings You Off-Policy RL Training").
"""

from __future__ import annotations

from torch import Tensor


def mismatch_metrics(logprobs_BT: Tensor, engine_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """Measure |ln π − ln π_engine| over the drawn tokens: its mean and its largest, in nats.

    Args:
        logprobs_BT: of the drawn tokens under the policy, as the trainer computes it.
        engine_BT: of the same tokens, as the engine that drew them told.
        mask_BT: where there are tokens.
    """
    apart_N = (logprobs_BT - engine_BT)[mask_BT].double().abs()
    if not len(apart_N):
        return {"engine/mismatch": 0.0, "engine/mismatch_max": 0.0}
    return {"engine/mismatch": float(apart_N.mean()), "engine/mismatch_max": float(apart_N.max())}


def truncated_weights(logprobs_BT: Tensor, engine_BT: Tensor, mask_BT: Tensor, *, max_weight: float) -> Tensor:
    """Compute min(π / π_engine, C) of each token, which weighs its term of the policy loss; 1 elsewhere.

    Truncated importance sampling (Ionides 2008, eq. 3), token by token as Yao et al. 2025 take it.

    Args:
        logprobs_BT: ln π under the policy that drew the tokens, as the trainer computes it.
        engine_BT: ln π_engine, as the engine told.
        mask_BT: where there are tokens.
        max_weight: C.
    """
    weights_BT = (logprobs_BT - engine_BT).masked_fill(~mask_BT, 0.0).exp()
    return weights_BT.clamp(max=max_weight)
