"""Prompts answered by several models: every answer, and the figures of each model."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from alignkit.evaluate.statistics import Wins


@dataclass
class Answer:
    """One response.

    Attributes:
        text: the response.
        finish_reason: as in `Completion`.
        num_tokens: of the response.
        logprob: of the response under the model that gave it, in nats.
        reward: its score; None without `--reward`.
    """

    text: str
    finish_reason: str
    num_tokens: int
    logprob: float
    reward: float | None = None


@dataclass
class Column:
    """One model.

    Attributes:
        name: as it was given.
        answers: one for each prompt.
        wins: against the first model, by reward; None for the first, or without rewards.
        token_logprobs: of each token of the first model's responses, by this model; empty if they were not asked for.
    """

    name: str
    answers: list[Answer] = field(default_factory=list)
    wins: Wins | None = None
    token_logprobs: list[list[float]] = field(default_factory=list)

    @property
    def mean_length(self) -> float:
        return fmean(answer.num_tokens for answer in self.answers)

    @property
    def stop_rate(self) -> float:
        return fmean(answer.finish_reason != "length" for answer in self.answers)

    @property
    def mean_reward(self) -> float | None:
        scores = [answer.reward for answer in self.answers if answer.reward is not None]
        return fmean(scores) if scores else None


@dataclass
class Comparison:
    """Prompts as rows, models as columns.

    Attributes:
        sources: where each prompt is from.
        prompts: their texts.
        columns: the models.
        tokens: the first model's responses token by token, where log-probabilities were asked for.
    """

    sources: list[str]
    prompts: list[str]
    columns: list[Column]
    tokens: list[list[str]] = field(default_factory=list)


def summary(comparison: Comparison) -> list[dict[str, str]]:
    """Format the figures of each column, for the table and for the page."""
    rows: list[dict[str, Any]] = []
    for column in comparison.columns:
        row = {"tokens": f"{column.mean_length:.1f}", "stopped": f"{column.stop_rate:.0%}"}
        if column.mean_reward is not None:
            row["reward"] = f"{column.mean_reward:.3f}"
            wins = column.wins
            row["win rate"] = (
                "–" if wins is None else f"{wins.rate.value:.2f} [{wins.rate.low:.2f}, {wins.rate.high:.2f}]"
            )
            row["win/tie/loss"] = "–" if wins is None else f"{wins.wins}/{wins.ties}/{wins.losses}"
        if column.token_logprobs:
            row["log-probability"] = f"{fmean(map(sum, column.token_logprobs)):.3f}"
        rows.append(row)
    return rows
