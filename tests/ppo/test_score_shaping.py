"""Scores between their source and the loss."""

import statistics
from collections.abc import Sequence

import pytest

from alignkit.choices import ScoreScaling
from alignkit.config import PpoConfig
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.score_shaping import RunningMoments, ScoreShaping, overlong_penalty


def rollouts(scores: Sequence[float | None], has_ended: Sequence[bool] = (), *, length: int = 1) -> list[Rollout]:
    ended = has_ended or [True] * len(scores)
    return [Rollout(0, 0, [7] * length, "", end, score=score) for score, end in zip(scores, ended, strict=True)]


def test_scores_pass_as_they_are() -> None:
    assert ScoreShaping(PpoConfig())(rollouts([1.0, None, -3.0], [True, False, False])) == [1.0, None, -3.0]


def test_a_completion_that_did_not_end_pays_and_what_is_far_out_is_cut() -> None:
    shaping = ScoreShaping(PpoConfig(missing_eos_penalty=2.0, score_clip=2.5))
    assert shaping(rollouts([1.0, 1.0, 9.0, -1.0], [True, False, True, False])) == [1.0, -1.0, 2.5, -2.5]


def test_running_moments_are_those_of_everything_seen() -> None:
    moments, seen = RunningMoments(), []
    for values in ([1.0, 2.0, 4.0], [], [10.0], [-3.0, 0.5]):
        moments.add(values)
        seen += values
    assert moments.mean == pytest.approx(statistics.fmean(seen))
    assert moments.std == pytest.approx(statistics.pstdev(seen))


def test_running_scaling_goes_on_where_it_was() -> None:
    ppo = PpoConfig(score_scaling=ScoreScaling.running)
    whole, first, second = ScoreShaping(ppo), ScoreShaping(ppo), ScoreShaping(ppo)
    whole(rollouts([1.0, 2.0, 3.0]))
    first(rollouts([1.0, 2.0, 3.0]))
    second.load_state_dict(first.state_dict())
    assert second(rollouts([5.0, None])) == whole(rollouts([5.0, None]))
    assert ScoreShaping(ppo)(rollouts([1.0, 3.0])) == [-1.0, 1.0]
    assert ScoreShaping(ppo)(rollouts([2.0, 2.0])) == [0.0, 0.0]


def test_scores_that_are_alike_but_for_rounding_are_not_scaled_up() -> None:
    shape = ScoreShaping(PpoConfig(score_scaling=ScoreScaling.running))
    assert shape(rollouts([0.73105860, 0.73105854, 0.73105860, 0.73105854])) == [0, 0, 0, 0]
    assert shape(rollouts([0.74, 0.73, 0.73, 0.73]))[0] > 1


@pytest.mark.parametrize(("length", "penalty"), [(1, 0.0), (8, 0.0), (9, 0.5), (10, 1.0), (12, 2.0), (13, 2.0)])
def test_a_completion_that_is_too_long_pays_more_the_longer_it_is(length: int, penalty: float) -> None:
    assert overlong_penalty(length, start=8, end=12, penalty=2.0) == penalty
    shaping = ScoreShaping(PpoConfig(overlong={"from": 8, "to": 12, "penalty": 2.0}, missing_eos_penalty=1.0))
    assert shaping(rollouts([3.0, 3.0, None], [True, False, True], length=length)) == [3 - penalty, 2 - penalty, None]
