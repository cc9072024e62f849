"""The weighted sum of reward sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.choices import OnError
from alignkit.errors import RewardError
from alignkit.rewards.function import FunctionScorer
from alignkit.rewards.reward_run import RewardRunScorer
from alignkit.rewards.sample import RewardScorer, Sample
from alignkit.rewards.source import RewardSource
from alignkit.rewards.worker import Failure

_LARGEST = 1e15  # training squares scores, and sums the squares, in float32: 3e38 is its largest number


@dataclass
class Scores:
    """Scores of completions.

    Attributes:
        total: weighted sums over the sources; None for a completion that a source skipped.
        by_source: of each source by its name, unweighted.
        reasons: why a completion has no score; None for one that has.
    """

    total: list[float | None]
    by_source: dict[str, list[float | None]] = field(default_factory=dict)
    reasons: list[str | None] = field(default_factory=list)


@dataclass
class Rewards:
    """All reward sources, loaded."""

    sources: list[tuple[RewardSource, RewardScorer]]

    def __str__(self) -> str:
        """Write the sum, and where the weights of its reward runs are."""
        held = [f" ({scorer.held})" if isinstance(scorer, RewardRunScorer) else "" for _, scorer in self.sources]
        parts = [f"{source.weight:g} × {source.name}" for source, _ in self.sources]
        return " + ".join(map("".join, zip(parts, held, strict=True)))

    @property
    def share_policy(self) -> bool:
        """Whether scoring passes through the backbone of the policy."""
        return any(isinstance(scorer, RewardRunScorer) and scorer.run.is_shared for _, scorer in self.sources)

    def truncations(self) -> list[str]:
        """Return one line for each source that could not read every answer whole."""
        return [
            f"{source.setting}: {scorer.num_cut:,} answers were longer than {source.name} can read, and were truncated"
            for source, scorer in self.sources
            if scorer.num_cut
        ]

    def scored_though_cut(self, num_cut: int, num_all: int, *, policy: str, max_new_tokens: int) -> list[str]:
        """Return one line for each reward run that scores responses as if they had ended, though they were cut off.

        Args:
            num_cut: responses that `max_new_tokens` cut off.
            num_all: responses.
            policy: whose they are.
            max_new_tokens: where they were cut.
        """
        return [
            f"{source.setting}: {source.name} scores {num_cut:,} of {num_all:,} responses of {policy} as if they had "
            f"ended, where sampling.max_new_tokens={max_new_tokens} cut them off"
            for source, _ in self.sources
            if source.kind == "model" and num_cut
        ]

    def template_mismatches(self, jinja: str, policy: str) -> list[str]:
        """Return one line for each reward run that was trained with another template than that of the policy.

        Args:
            jinja: the template of the policy.
            policy: its name.
        """
        return [
            f"{source.setting}: {source.name} was trained with another template than {policy} answers in; it reads "
            "every answer in its own"
            for source, scorer in self.sources
            if isinstance(scorer, RewardRunScorer) and scorer.jinja.strip() != jinja.strip()
        ]

    def close(self) -> None:
        """End the worker processes of functions."""
        for _, scorer in self.sources:
            if isinstance(scorer, FunctionScorer):
                scorer.close()

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score completions under every source.

        Raises:
            RewardError: a source failed on a sample and `on_error` is stop.
        """
        names = _distinct([source.name for source, _ in self.sources])
        outcomes = {
            name: _checked(source, scorer.score(samples), samples)
            for name, (source, scorer) in zip(names, self.sources, strict=True)
        }
        weights = [source.weight for source, _ in self.sources]
        total: list[float | None] = []
        reasons: list[str | None] = []
        for row in zip(*outcomes.values(), strict=True):
            values = [value for value in row if isinstance(value, float)]
            is_whole = len(values) == len(row)
            total.append(sum(w * v for w, v in zip(weights, values, strict=True)) if is_whole else None)
            named = zip(names, row, strict=True)
            reasons.append("; ".join(f"{name} {one.reason}" for name, one in named if isinstance(one, Failure)) or None)
        by_source = {
            name: [value if isinstance(value, float) else None for value in values] for name, values in outcomes.items()
        }
        return Scores(total, by_source, reasons)


def _checked(source: RewardSource, given: Sequence[Any], samples: Sequence[Sample]) -> list[float | Failure]:
    """Only finite numbers, or why there is none where `on_error` is skip."""
    scores: list[float | Failure] = []
    for score, sample in zip(given, samples, strict=True):
        is_number = _is_finite(score) and abs(source.weight * score) <= _LARGEST
        if not is_number and source.on_error is OnError.stop:
            way_out = "" if source.is_option else "; on_error: skip leaves such completions out"
            raise RewardError(
                f"{source.setting}: {source.name} gave {score!r} for {sample}: a score must be a finite number, "
                f"times its weight {_LARGEST:.0e} at most{way_out}"
            )
        failure = score if isinstance(score, Failure) else Failure(f"gave {score!r}")
        scores.append(float(score) if is_number else failure)
    return scores


def _is_finite(score: Any) -> bool:
    try:
        return isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
    except OverflowError:  # an int that no float can be
        return False


def _distinct(names: Sequence[str]) -> list[str]:
    return [f"{name}#{i}" if name in names[:i] else name for i, name in enumerate(names)]
