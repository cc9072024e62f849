"""The metrics of an update and of an evaluation, by value."""

import math

import pytest
import torch

from alignkit.ppo.experience import RolloutTensors
from alignkit.ppo.metrics import (
    explained_variance,
    held_out_metrics,
    kl_and_entropy,
    mean,
    rollout_metrics,
    sample_std,
    throughput_metrics,
)
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.scoring import pad_sequences

NOTHING = float("nan")


def rollout(ids: list[int], score: float | None, *, has_ended: bool = True, **by_source: float | None) -> Rollout:
    return Rollout(0, 0, ids, "", has_ended, score=score, by_source=by_source)


def tensors() -> RolloutTensors:
    """A completion of two tokens, and one that has no score."""
    return RolloutTensors(
        mask_BT=torch.tensor([[True, True], [False, False]]),
        trained_BT=torch.tensor([[True, True], [False, False]]),
        logprobs_BT=torch.tensor([[-1.0, -2.0], [NOTHING, NOTHING]]),
        ref_logprobs_BT=torch.tensor([[-1.5, -2.0], [NOTHING, NOTHING]]),
        entropies_BT=torch.tensor([[0.25, 0.75], [NOTHING, NOTHING]]),
        values_BT=torch.tensor([[1.0, 3.0], [NOTHING, NOTHING]]),
        rewards_BT=torch.tensor([[-0.5, 2.0], [0.0, 0.0]]),
        advantages_BT=torch.zeros(2, 2),
        returns_BT=torch.tensor([[2.0, 4.0], [0.0, 0.0]]),
    )


@pytest.mark.parametrize(
    ("returns", "values", "expected"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.0),
        ([1.0, 2.0, 3.0], [7.0, 8.0, 9.0], 1.0),  # a shift is no error of the variance
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.0),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], 2 / 3),  # 1 − (1/3) / 1
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -3.0),  # worse than a constant: 1 − 4 / 1
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], 0.0),  # nothing to explain
    ],
)
def test_explained_variance(returns: list[float], values: list[float], expected: float) -> None:
    mask_BT = torch.tensor([[True, True, True, False]])
    found = explained_variance(torch.tensor([[*returns, NOTHING]]), torch.tensor([[*values, NOTHING]]), mask_BT)
    assert found == pytest.approx(expected)


def test_explained_variance_of_too_little() -> None:
    one = torch.tensor([[1.0, 2.0]])
    assert explained_variance(one, one, torch.tensor([[True, False]])) == 0.0
    assert explained_variance(one, one, torch.tensor([[False, False]])) == 0.0


def test_kl_and_entropy_leave_out_what_has_no_score() -> None:
    k3 = math.exp(-0.5) - 1 + 0.5
    assert kl_and_entropy(tensors()) == pytest.approx(
        {
            "objective/kl": 0.5,
            "objective/kl_per_token": 0.25,
            "objective/kl_k3": k3,
            "objective/kl_k3_per_token": k3 / 2,
            "objective/entropy": 0.5,
        }
    )


def test_metrics_of_a_rollout() -> None:
    rollouts = [
        rollout([5, 1], 3.0, length=2.0, judge=1.0),
        rollout([5, 1], None, has_ended=False, length=4.0, judge=None),
    ]
    assert rollout_metrics(rollouts, tensors(), [2.5, None]) == {
        "objective/score": 3.0,
        "objective/score_std": 0.0,
        "objective/score_shaped": 2.5,
        "objective/reward": 1.5,
        "value/explained_variance": 1.0,
        "value/mean": 2.0,
        "rollout/length": 2.0,
        "rollout/eos_fraction": 0.5,
        "rollout/unique_fraction": 0.5,
        "rollout/skipped": 1.0,
        "rollout/masked": 0.0,
        "score/length": 3.0,
        "score/judge": 1.0,
    }


def test_one_source_is_not_told_from_the_sum() -> None:
    found = rollout_metrics([rollout([5], 1.0, length=1.0), rollout([6], 3.0, length=3.0)], tensors(), [1.0, 3.0])
    assert "score/length" not in found
    assert found["objective/score_std"] == pytest.approx(math.sqrt(2))  # n − 1 in the denominator


def test_metrics_of_an_evaluation() -> None:
    rollouts = [rollout([5, 1], 1.0), rollout([5], 3.0, has_ended=False), rollout([5, 6, 1], None)]
    assert held_out_metrics(rollouts, kl=0.7) == pytest.approx(
        {"score": 2.0, "score_se": 1.0, "kl": 0.7, "length": 2.0, "eos_fraction": 2 / 3}
    )


def test_tokens_per_second() -> None:
    rows = pad_sequences([[5, 6, 7], [8]], [[9, 1], [1]], pad_id=0, min_new_tokens=0, device=torch.device("cpu"))
    found = throughput_metrics(
        rows, num_drawn=3, rollout_seconds=1.0, scoring_seconds=0.5, update_seconds=2.0, num_passes=4.0
    )
    assert found == {
        "seconds/rollout": 1.0,
        "tokens_per_second/rollout": 3.0,
        "seconds/scoring": 0.5,
        "tokens_per_second/scoring": 14.0,
        "seconds/update": 2.0,
        "tokens_per_second/update": 14.0,
        "tokens_per_second": 3 / 3.5,
    }


def test_moments_of_little() -> None:
    assert (mean([]), sample_std([]), mean([2.0]), sample_std([2.0])) == (0.0, 0.0, 2.0, 0.0)
