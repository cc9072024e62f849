"""The files of a run as its page needs them, bounded; a run that goes on is read as far as it has written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_ROLLOUTS = 500
MOST_CHARS = 2_000  # of a text on the page; the files have all of it
_NUM_EXAMPLES = 2
_NUMBER = (int, float)
_SHARE = dict.fromkeys(("value", "low", "high"), _NUMBER)
# Of `report_card.json`, a card for each held-out set.
CARD = {
    **{"pairs": int, "accuracy": _SHARE, "longer_wins": _SHARE, "calibration_gap": _NUMBER},
    "score_length_correlation": (*_NUMBER, type(None)),
    "margin": {"mean": _NUMBER, "std": _NUMBER, "histogram": {"edges": [_NUMBER], "counts": [_NUMBER]}},
    "by_length": [{"tokens": [_NUMBER], "accuracy": _SHARE}],
    "calibration": [{"said": _NUMBER, "right": _NUMBER}],
}
_SPANS = [{"text": str, "supervised": bool, "special": bool}]
FIRST_ROWS = {"legend": _SPANS, "rows": [{"place": str, "size": str, "parts": [{"name": str, "spans": _SPANS}]}]}


@dataclass(frozen=True)
class LedgerLine:
    """The source rows of one fate and reason.

    Attributes:
        label: `kept`, or the fate and the reason.
        counts: by set.
        examples: the first of their places.
    """

    label: str
    counts: Counter[str]
    examples: list[str]


@dataclass
class JsonLines:
    """The objects of a JSON-lines file.

    Attributes:
        path: of the file; it may be missing.
        num_unreadable: lines so far that are no object, but for a last one that is being written.
    """

    path: Path
    num_unreadable: int = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.num_unreadable = 0
        try:
            stream = self.path.open(encoding="utf-8", errors="replace", newline="\n")
        except OSError:
            return
        with stream:
            for line in stream:
                try:
                    value = json.loads(line, parse_constant=lambda _: None)
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    yield value
                elif line.endswith("\n"):
                    self.num_unreadable += 1


def ledger(lines: JsonLines) -> list[LedgerLine]:
    """Count what became of every source row: kept, truncated, dropped."""
    found: dict[str, LedgerLine] = {}
    for row in lines:
        fate, reason = str(row.get("fate", "?")), str(row.get("reason", ""))
        label = f"{fate}: {reason}" if reason else fate
        line = found.setdefault(label, LedgerLine(label, Counter(), []))
        line.counts[str(row.get("set", "train"))] += 1
        if len(line.examples) < _NUM_EXAMPLES:
            line.examples.append(str(row.get("source", "")))
    fates = ("kept", "truncated", "dropped")
    known = {fate: place for place, fate in enumerate(fates)}
    return sorted(found.values(), key=lambda line: (known.get(line.label.partition(":")[0], 3), -line.counts.total()))


def rollouts(lines: JsonLines) -> tuple[list[dict[str, Any]], int]:
    """Read rollouts, evenly over the updates where there are too many; and how many there are."""
    num_all = sum(1 for _ in lines)
    every = -(-num_all // MOST_ROLLOUTS) or 1
    return [row for index, row in enumerate(lines) if (num_all - 1 - index) % every == 0], num_all


def read_json(path: Path) -> Any:
    """Read a JSON file; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError):
        return None


def fits(value: Any, shape: Any) -> bool:
    """Tell whether a value of JSON has a shape: a type, the shapes of some keys, or a list of one shape in brackets."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], part) for key, part in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    return isinstance(value, shape)


def shortened(text: Any) -> str:
    """Cut a text to what a page shows, and say by how much."""
    text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    cut = len(text) - MOST_CHARS
    return text if cut <= 0 else f"{text[:MOST_CHARS]}… ({cut:,} more characters)"
