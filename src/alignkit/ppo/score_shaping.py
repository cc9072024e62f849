"""From raw scores to the scores that are learned from: a penalty, a scale and a clip, each optional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from alignkit.config import PpoConfig, ScoreScaling

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


@dataclass
class ScoreShaping:
    """The optional steps between a reward source and the loss, in their order, and what they have seen.

    Attributes:
        ppo: the settings `missing_eos_penalty`, `score_scaling` and `score_clip`.
        seen: scores of all updates, for running scaling.
    """

    ppo: PpoConfig
    seen: RunningMoments = field(default_factory=RunningMoments)

    def __call__(self, scores: Sequence[float | None], has_ended: Sequence[bool]) -> list[float | None]:
        """Scores to learn from, None where there was none."""
        penalty = self.ppo.missing_eos_penalty or 0.0
        shaped = [
            None if score is None else score - (0.0 if ended else penalty)
            for score, ended in zip(scores, has_ended, strict=True)
        ]
        if self.ppo.score_scaling is ScoreScaling.running:
            self.seen.add([score for score in shaped if score is not None])
            spread = max(self.seen.std, 1e-6)
            if self.seen.std <= _ROUNDING * abs(self.seen.mean):  # all alike but for rounding: nothing to learn
                spread = math.inf
            shaped = [None if score is None else (score - self.seen.mean) / spread for score in shaped]
        if (bound := self.ppo.score_clip) is not None:
            shaped = [None if score is None else min(max(score, -bound), bound) for score in shaped]
        return shaped

    def state_dict(self) -> dict[str, float]:
        return {"count": self.seen.count, "mean": self.seen.mean, "squares": self.seen.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seen = RunningMoments(**state)
