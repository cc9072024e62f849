"""What was measured of each model, and what differs between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from alignkit.evaluate.statistics import (
    Expectation,
    Interval,
    fewest_responses,
    mean_interval,
    most_others,
    win_rate,
)
from alignkit.evaluate.table import format_table
from alignkit.rewards.reply import Reply
from alignkit.terminal import plain_number


@dataclass
class Responses:
    """K responses to each of N prompts.

    Attributes:
        texts: N lists of K.
        finish_reasons: as in `Completion`, N × K.
        tokens: of a response.
        stopped: the share that ended before `max_new_tokens`.
        distinct: n to the share of word n-grams that differ.
    """

    texts: list[list[str]]
    finish_reasons: list[str]
    tokens: Expectation
    stopped: Expectation
    distinct: dict[int, float]


@dataclass
class Figures:
    """What was measured of one model.

    Attributes:
        name: of the model.
        losses: of each held-out row, its mean cross entropy in nats per supervised token, and how many there are.
        loss: per supervised token of all rows, as training logs it, with its interval over rows; None without rows.
        responses: None where none were asked for.
        replies: the responses as a reward reads them, N × K; empty where there is none.
        scores: rewards, N lists of K.
        reward: E_x E_y[r(x, y)].
        kl: KL(model ‖ reference) of a response in nats, by exact next-token divergences along responses from its
            plain distribution: temperature 1, all tokens, whatever the sampling settings are.
        preference: accuracy of the implicit reward on pairs, and the rest of its card.
    """

    name: str
    losses: dict[str, tuple[float, int]] = field(default_factory=dict)
    loss: Interval | None = None
    responses: Responses | None = None
    replies: list[Reply] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    reward: Expectation | None = None
    kl: Expectation | None = None
    preference: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        loss = {} if self.loss is None else asdict(self.loss)
        found = asdict(replace(self, replies=[])) | {
            "perplexity": {key: math.exp(value) for key, value in loss.items()}
        }
        return {key: value for key, value in found.items() if value not in (None, [], {})}


def distinct(texts: Sequence[str], n: int) -> float:
    """Compute the share of different word n-grams among all of the responses (Li et al. 2016, distinct-n).

    Words, so that models with different tokenizers compare; n-grams do not reach across responses. NaN without any.
    """
    grams = [gram for text in texts for gram in _ngrams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def figures_table(figures: Sequence[Figures]) -> str:
    """Format one line for each model; intervals are 95 % intervals."""
    return format_table([one.name for one in figures], [_row(one) for one in figures])


def _row(one: Figures) -> dict[str, str]:
    row = {}
    if one.loss is not None:
        row["loss"] = f"{plain_number(one.loss.value)} {_ends(one.loss.low, one.loss.high)}"
        row["perplexity"] = f"{math.exp(one.loss.value):.3f}"
    if one.reward is not None:
        row["reward"] = f"{plain_number(one.reward.mean)} {_ends(one.reward.low, one.reward.high)}"
        if not math.isnan(one.reward.standard_error):
            parts = map(plain_number, (one.reward.standard_error, one.reward.between, one.reward.within))
            row["se (between, within)"] = "{} ({}, {})".format(*parts)
    if one.kl is not None:
        row["KL"] = plain_number(one.kl.mean)
        row["KL"] += "" if math.isnan(one.kl.standard_error) else f" ± {plain_number(one.kl.standard_error)}"
    if one.preference is not None:
        accuracy = one.preference["accuracy"]
        row["pairs right"] = f"{accuracy['value']:.1%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}]"
    if one.responses is not None:
        row["tokens"] = f"{one.responses.tokens.mean:.1f}"
        row["stopped"] = f"{one.responses.stopped.mean:.0%}"
        known = {n: share for n, share in one.responses.distinct.items() if not math.isnan(share)}
        row |= {f"distinct-{n}": f"{share:.3f}" for n, share in known.items()}
    return row


def _ends(low: float, high: float) -> str:
    """The ends of an interval; a dash where there is none."""
    return "[–]" if math.isnan(low) else f"[{plain_number(low)}, {plain_number(high)}]"


def equal_lines(figures: Sequence[Figures]) -> list[str]:
    """Say what [–] means, and what equal rewards do tell; nothing where every figure has its interval."""
    losses = [one.loss for one in figures if one.loss is not None and math.isnan(one.loss.low)]
    rewards = [one.reward for one in figures if one.reward is not None and math.isnan(one.reward.low)]
    if not (losses or rewards):
        return []
    equal = {reward.num_prompts for reward in rewards if reward.num_prompts > 1}
    return [
        "[–] one value, or all of them equal: nothing tells how far others are from it",
        *(f"{num} prompts with equal rewards: at most {most_others(num):.0%} of all others differ" for num in equal),
    ]


def difference_lines(figures: Sequence[Figures]) -> list[str]:
    """Format how each model differs from the first, with intervals paired by row and by prompt."""
    first, *others = figures
    rows = [_differences(first, other) for other in others]
    if not rows:
        return []
    names = [other.name for other in others]
    return ["", f"against {first.name}, paired:", format_table(names, rows)]


def _differences(first: Figures, other: Figures) -> dict[str, str]:
    row = {}
    same_tokens = {source: count for source, (_, count) in first.losses.items()} == {
        source: count for source, (_, count) in other.losses.items()
    }
    if first.losses and same_tokens:
        pairs = [(other.losses[source][0] - loss, count) for source, (loss, count) in first.losses.items()]
        row["loss"] = _signed(mean_interval([gain for gain, _ in pairs], weights_N=[count for _, count in pairs]))
    if first.scores and other.scores:
        ours, theirs = ([fmean(scores) for scores in one.scores] for one in (other, first))
        row["reward"] = _signed(mean_interval([a - b for a, b in zip(ours, theirs, strict=True)]))
        wins = win_rate(ours, theirs)
        row["win rate"] = f"{wins.rate.value:.2f} [{wins.rate.low:.2f}, {wins.rate.high:.2f}]"
        row["win/tie/loss"] = f"{wins.wins}/{wins.ties}/{wins.losses}"
    if first.responses is not None and other.responses is not None:
        lengths = other.responses.tokens.mean - first.responses.tokens.mean
        row["tokens"] = f"{lengths:+.1f}"
    return row


def _signed(found: Interval) -> str:
    ends = "[–]" if math.isnan(found.low) else f"[{found.low:+.4f}, {found.high:+.4f}]"
    return f"{found.value:+.4f} {ends}"


def precision_lines(figures: Sequence[Figures], half_width: float) -> list[str]:
    """Say how many responses make the 95 % interval of each model's reward ± `half_width`."""
    return ["", *(_precision_line(one.name, one.reward, half_width) for one in figures if one.reward is not None)]


def _precision_line(name: str, reward: Expectation, half_width: float) -> str:
    if math.isnan(reward.low):
        return f"{name}: its rewards do not tell their spread, so neither how many of them ± {half_width:g} takes"
    sizes = fewest_responses(reward, half_width)
    assert sizes is not None
    here = fewest_responses(reward, half_width, most_prompts=reward.num_prompts)
    if here is None:
        these = f"these {reward.num_prompts} prompts alone cannot reach it"
    elif here[0] == reward.num_prompts:
        these = f"with these {reward.num_prompts} prompts alone num_samples={here[1]} would do"
    else:
        these = "these prompts are enough"
    return f"{name}: ± {half_width:g} takes num_prompts={sizes[0]} num_samples={sizes[1]}; {these}"
