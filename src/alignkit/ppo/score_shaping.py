"""From raw scores to the scores that are learned from: penalties, a scale and a clip, each optional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignkit.choices import ScoreScaling
from alignkit.config import PpoConfig
from alignkit.ppo.rollout import Rollout

_ROUNDING = 4 * 2.0**-23  # of float32, in which models score


@dataclass
class RunningMoments:
    """Mean and variance of everything seen so far (Chan et al. 1983, the parallel form of Welford's sums)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        if not values:
            return
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        delta, total = mean - self.mean, self.count + len(values)
        self.squares += squares + delta**2 * self.count * len(values) / total
        self.mean += delta * len(values) / total
        self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def overlong_penalty(length: int, *, start: int, end: int, penalty: float) -> float:
    """Compute the soft punishment of a long completion: 0 up to `start` tokens, all of `penalty` from `end` tokens on.

    In between it grows in a line (DAPO, Yu et al. 2025, eq. 13, whose penalty is 1).
    """
    return penalty * min(max((length - start) / (end - start), 0.0), 1.0)


@dataclass
class ScoreShaping:
    """The optional steps between a reward source and the loss, in their order, and what they have seen.

    Attributes:
        ppo: the settings `missing_eos_penalty`, `overlong`, `score_scaling` and `score_clip`.
        seen: scores of all updates, for running scaling.
    """

    ppo: PpoConfig
    seen: RunningMoments = field(default_factory=RunningMoments)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """Return the scores to learn from, None where there was none."""
        shaped = self.penalized(rollouts)
        if self.ppo.score_scaling is ScoreScaling.running:
            self.seen.add([score for score in shaped if score is not None])
            spread = max(self.seen.std, 1e-6)
            if self.seen.std <= _ROUNDING * abs(self.seen.mean):  # all alike but for rounding: nothing to learn
                spread = math.inf
            shaped = [None if score is None else (score - self.seen.mean) / spread for score in shaped]
        if (bound := self.ppo.score_clip) is not None:
            shaped = [None if score is None else min(max(score, -bound), bound) for score in shaped]
        return shaped

    def penalized(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """Return the scores less the penalties, before scale and clip."""
        return [None if rollout.score is None else rollout.score - self._penalty(rollout) for rollout in rollouts]

    def _penalty(self, rollout: Rollout) -> float:
        missing = 0.0 if rollout.has_ended else self.ppo.missing_eos_penalty or 0.0
        if not (soft := self.ppo.overlong):
            return missing
        length = len(rollout.ids)
        return missing + overlong_penalty(length, start=soft["from"], end=soft["to"], penalty=soft["penalty"])

    def state_dict(self) -> dict[str, float]:
        return {"count": self.seen.count, "mean": self.seen.mean, "squares": self.seen.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seen = RunningMoments(**state)
