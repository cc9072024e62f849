"""A comparison as one self-contained page: prompts as rows, models as columns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluate.comparison import Answer, Column, Comparison, summary
from alignkit.pages.page import render

_STRONGEST = 3.0  # nats: a change by so much, or more, has the full color
_REASONS = {"stop": "ended", "stop_string": "ended by a stop string", "length": "cut off"}


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the page: no script, no font, no image from elsewhere."""
    columns, figures = comparison.columns, summary(comparison)
    page = render(
        "compare.html",
        title=" against ".join(column.name for column in columns),
        figure_names=list(figures[0]),
        figures=[(column.name, list(row.values())) for column, row in zip(columns, figures, strict=True)],
        with_rewards=columns[0].mean_reward is not None,
        with_tokens=bool(comparison.tokens),
        rows=[_row(comparison, index) for index in range(len(comparison.prompts))],
    )
    path.write_text(page, encoding="utf-8")


def _row(comparison: Comparison, index: int) -> dict[str, Any]:
    best = _best(comparison, index)
    cells = [_cell(comparison, column, index, is_best=column in best) for column in comparison.columns]
    return {"source": comparison.sources[index], "prompt": comparison.prompts[index], "cells": cells}


def _best(comparison: Comparison, index: int) -> Sequence[Column]:
    """Return the columns with the highest reward; none if all have the same."""
    scores = [column.answers[index].reward for column in comparison.columns]
    known = [score for score in scores if score is not None]
    if not known or len(set(known)) == 1:
        return []
    return [column for column, score in zip(comparison.columns, scores, strict=True) if score == max(known)]


def _cell(comparison: Comparison, column: Column, index: int, *, is_best: bool) -> dict[str, Any]:
    first, answer = comparison.columns[0], column.answers[index]
    tokens = [] if column is first else list(_changes(comparison, column, index))
    return {
        "model": column.name,
        "words": list(_words(first.answers[index].text, answer.text, is_first=column is first)),
        "facts": f"{answer.num_tokens} tokens · {_REASONS[answer.finish_reason]}",
        "score": _score(answer),
        "is_best": is_best,
        "tokens": tokens,
        "change": sum(token["after"] for token in tokens) - sum(token["before"] for token in tokens),
    }


def _score(answer: Answer) -> str:
    return "" if answer.reward is None else f"reward {answer.reward:.3f}"


def _words(first: str, text: str, *, is_first: bool) -> Iterator[tuple[str, bool]]:
    """Cut a response where it leaves or joins the first model's: each piece, and whether it is new."""
    if is_first or not text:
        yield from [(text, False)] if text else []
        return
    ours, theirs = (re.findall(r"\s+|\w+|[^\w\s]", part) for part in (text, first))
    for kind, _, _, start, stop in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        words = "".join(ours[start:stop])
        yield words, kind != "equal" and bool(words.strip())


def _changes(comparison: Comparison, column: Column, index: int) -> Iterator[dict[str, Any]]:
    """Go through the first model's response: how each token's log-probability changes from there to this model."""
    if not comparison.tokens:
        return
    was, now = comparison.columns[0].token_logprobs[index], column.token_logprobs[index]
    for token, before, after in zip(comparison.tokens[index], was, now, strict=True):
        change = after - before
        yield {
            "text": token.replace("\n", "⏎\n"),
            "before": before,
            "after": after,
            "way": "up" if change > 0 else "down",
            "share": 0.6 * min(abs(change) / _STRONGEST, 1.0),  # text stays readable on it
        }
