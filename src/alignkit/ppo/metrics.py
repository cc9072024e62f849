"""The metrics of an update and of an evaluation, by the names that they have in `metrics.jsonl`.

Those of the losses are summed where the losses are made, in `learner.py`; `record.py` draws the curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from alignkit.ppo.experience import RolloutTensors
from alignkit.ppo.kl import Estimator, sequence_sums, token_kl, token_sum
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.scoring import Sequences

_KL_ESTIMATORS: dict[str, Estimator] = {"objective/kl": "k1", "objective/kl_k3": "k3"}


def rollout_metrics(
    rollouts: Sequence[Rollout], tensors: RolloutTensors, shaped: Sequence[float | None]
) -> dict[str, float]:
    """Measure a rollout: its scores, its values and its texts.

    Args:
        rollouts: scored.
        tensors: of the same completions.
        shaped: the scores that are learned from; None where there is none.
    """
    scores = [rollout.score for rollout in rollouts if rollout.score is not None]
    num, mask_BT = len(rollouts), tensors.mask_BT
    measured = {
        "objective/score": mean(scores),
        "objective/score_std": sample_std(scores),
        "objective/score_shaped": mean([score for score in shaped if score is not None]),
        "objective/reward": float(tensors.rewards_BT.sum()) / max(len(scores), 1),
        "rollout/length": mean([len(rollout.ids) for rollout in rollouts]),
        "rollout/eos_fraction": sum(rollout.has_ended for rollout in rollouts) / num,
        "rollout/unique_fraction": len({tuple(rollout.ids) for rollout in rollouts}) / num,
        "rollout/skipped": float(num - len(scores)),
        "rollout/masked": float((mask_BT.any(-1) & ~tensors.trained_BT.any(-1)).sum()),
    }
    if tensors.values_BT is not None and tensors.returns_BT is not None:
        measured |= {
            "value/explained_variance": explained_variance(tensors.returns_BT, tensors.values_BT, mask_BT),
            "value/mean": float(tensors.values_BT[mask_BT].mean()) if bool(mask_BT.any()) else 0.0,
        }
    return measured | _by_source(rollouts)


def _by_source(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The mean score of each reward, unweighted; of a single one it is the score."""
    names = list(rollouts[0].by_source)
    return {
        f"score/{name}": mean([s for rollout in rollouts if (s := rollout.by_source[name]) is not None])
        for name in (names if len(names) > 1 else ())
    }


def held_out_metrics(rollouts: Sequence[Rollout], *, kl: float | None) -> dict[str, float]:
    """Measure completions of the held-out prompts: mean score with its standard error and each reward's, KL, length.

    Args:
        rollouts: scored.
        kl: to the reference, in nats per completion; None where there is none.
    """
    scores = [rollout.score for rollout in rollouts if rollout.score is not None]
    return {
        "score": mean(scores),
        "score_se": sample_std(scores) / math.sqrt(max(len(scores), 1)),
        **({} if kl is None else {"kl": kl}),
        "length": mean([len(rollout.ids) for rollout in rollouts]),
        "eos_fraction": sum(rollout.has_ended for rollout in rollouts) / len(rollouts),
        **_by_source(rollouts),
    }


def throughput_metrics(
    rows: Sequences,
    *,
    num_drawn: int,
    rollout_seconds: float,
    scoring_seconds: float,
    update_seconds: float,
    num_passes: float,
) -> dict[str, float]:
    """Measure seconds and tokens per second of the parts of an update.

    A rollout is measured by the tokens that were drawn, the other parts by the tokens that passed through the model.

    Args:
        rows: prompts and completions of the rollout.
        num_drawn: tokens that were drawn, those of completions that were replaced too.
        rollout_seconds: to generate and score the completions.
        scoring_seconds: to compute log-probabilities and values.
        update_seconds: of the optimizer steps.
        num_passes: how often the optimizer steps went over the rollout.
    """
    num_tokens = sum(rows.completion_lengths) + sum(rows.prompt_lengths)
    parts = {
        "rollout": (rollout_seconds, num_drawn),
        "scoring": (scoring_seconds, num_tokens),
        "update": (update_seconds, num_tokens * num_passes),
    }
    measured: dict[str, float] = {}
    for name, (seconds, num) in parts.items():
        measured |= {f"seconds/{name}": seconds, f"tokens_per_second/{name}": num / max(seconds, 1e-9)}
    return measured | {"tokens_per_second": num_drawn / (rollout_seconds + scoring_seconds + update_seconds)}


def kl_and_entropy(tensors: RolloutTensors) -> dict[str, float]:
    """Measure KL to the reference, in nats per completion and per token, and entropy, in nats per token.

    Without a reference there is no KL.
    """
    mask_BT = tensors.mask_BT
    num = max(int(mask_BT.any(-1).sum()), 1)
    measured: dict[str, float] = {}
    ref_BT = tensors.ref_logprobs_BT
    for name, estimator in _KL_ESTIMATORS.items():
        if ref_BT is None:
            break
        kl_BT = token_kl(tensors.logprobs_BT, ref_BT, mask_BT, estimator=estimator)
        total, num_tokens = token_sum(kl_BT, mask_BT)
        measured[name] = float(sequence_sums(kl_BT, mask_BT).sum()) / num
        measured[f"{name}_per_token"] = float(total) / max(int(num_tokens), 1)
    total, num_tokens = token_sum(tensors.entropies_BT, mask_BT)
    return measured | {"objective/entropy": float(total) / max(int(num_tokens), 1)}


def explained_variance(returns_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> float:
    """Return 1 − Var(returns − values) / Var(returns): 1 for perfect values, 0 for values no better than a constant.

    0 where the returns are all alike or there are fewer than two.
    """
    returns, values = returns_BT[mask_BT].double(), values_BT[mask_BT].double()
    if returns.numel() < 2 or float(returns.var()) == 0:
        return 0.0
    return float(1 - (returns - values).var() / returns.var())


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def sample_std(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample, with n − 1 in the denominator; 0 of fewer than two."""
    if len(values) < 2:
        return 0.0
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))
