"""Answers that a verifier holds completions against: each row has one that it can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from alignkit.choices import OnError
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import did_you_mean
from alignkit.rewards.function import FunctionScorer, check_function
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import RewardSource

_SHOWN = 3  # rows named of those with the same fault

Row = tuple[str, Mapping[str, Any]]


def check_verifier(source: RewardSource) -> list[str]:
    """Find out whether a verifier has its library and can be called."""
    if source.verifier == "math" and find_spec("math_verify") is None:
        return [f"{source.setting}: verifier: math needs math-verify: pip install 'alignkit[verify]'"]
    return check_function(source)


def check_answers(source: RewardSource, rows: Sequence[Row]) -> list[str]:
    """Return one line for each fault of the answers in the rows' columns.

    Args:
        source: a verifier.
        rows: where each came from (`file:N`), and its columns.
    """
    column = source.answer
    if column is None:
        return []
    known = list(dict.fromkeys(key for _, columns in rows for key in columns))
    if column not in known:
        has = did_you_mean(column, known) or f"; they have {', '.join(known)}"
        return [f"{source.setting}.answer: '{column}' is no column of the prompts{has}"]
    missing = [place for place, columns in rows if columns.get(column) is None]
    problems = _named(missing, f"has no '{column}', which {source.setting} checks completions against")
    unread = list(_unread(source, rows)) if source.verifier == "math" else []
    way_out = "write a number, or LaTeX like $\\frac{1}{2}$"
    return problems + _named(unread, f"{source.setting} (verifier: math) cannot parse its '{column}': {way_out}")


def _unread(source: RewardSource, rows: Sequence[Row]) -> Iterator[str]:
    """Yield where the answers that `math` cannot parse are."""
    assert source.answer is not None
    given = [(place, str(columns[source.answer])) for place, columns in rows if columns.get(source.answer) is not None]
    distinct = list(dict.fromkeys(answer for _, answer in given))
    asked = Conversation((Message("user", ""),))
    parser = replace(source, verifier="math_answer", answer=None, on_error=OnError.skip)
    with closing(FunctionScorer(parser)) as scorer:
        scores = scorer.score([Sample(answer, asked, answer) for answer in distinct])
    can_be_read = dict(zip(distinct, scores, strict=True))
    yield from (place for place, answer in given if not can_be_read[answer])


def _named(places: Sequence[str], fault: str) -> list[str]:
    lines = [f"{place}: {fault}" for place in places[:_SHOWN]]
    return [*lines, f"… and {len(places) - _SHOWN:,} rows more"] if len(places) > _SHOWN else lines
