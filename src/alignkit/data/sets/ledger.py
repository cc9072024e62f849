"""What became of every source row."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from alignkit.choices import Overlength
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.surroundings import LABELLED_BAD
from alignkit.errors import DataError
from alignkit.terminal import in_a_line

# Left out because the user asked for fewer rows, not because the rows did not fit: no part of the drop budget.
UNBUDGETED = frozenset({"weight", LABELLED_BAD})
NUM_EXAMPLES = 2
NUM_REASONS = 5

# How the table calls what the user asked for.
_SAID = {"dropped: weight": "left out by weight", f"dropped: {LABELLED_BAD}": "left out by label"}

_WAYS_OUT = {
    "control_tokens": "choose data.control_tokens=neutralise",
    "malformed": "fix the malformed rows",
    "nothing_to_learn": "look at data.train_on and the rows' train flags",
    "identical": "give pairs whose sides differ",
    "equal_when_cut": "raise data.max_length",
    "prompts_differ": "give both sides of a pair one prompt",
}


# Under each policy another part of a row is what is too long.
_TOO_LONG = {
    Overlength.drop: "raise data.max_length, choose data.overlength=keep_end",
    Overlength.keep_end: "a response alone is longer than data.max_length and data.overlength=keep_end cuts prompts: "
    "raise data.max_length, choose data.overlength=keep_start",
    Overlength.keep_start: "a prompt alone fills data.max_length and data.overlength=keep_start cuts responses: "
    "raise data.max_length, choose data.overlength=keep_end",
}


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The fate of one source row.

    Attributes:
        source: `file:N`.
        fate: kept as it is, truncated, or dropped.
        reason: of a cut or a drop, from a small stable vocabulary: `too_long`, `malformed: 'output' is null`, ….
            Of a row in several parts, how many: `in 3 parts`, `cut_start, in 3 parts`.
        set: `train`, `eval`, or the name of one of several evaluation sets.
    """

    source: str
    fate: Literal["kept", "truncated", "dropped"]
    reason: str = ""
    set: str = "train"

    @property
    def label(self) -> str:
        """The line of the summary that counts this row: `kept`, `dropped: too_long`."""
        return f"{self.fate}: {self.reason}" if self.reason else self.fate


class Ledger:
    """Every source row ends here exactly once.

    Attributes:
        rows: in the order they were entered.
        notes: things counted that change no fate, such as neutralized control tokens.
        keys: of the rows and their messages: those that are read, and those that are not.
    """

    def __init__(self, overlength: Overlength = Overlength.drop, *, only_prompts: bool = False) -> None:
        """Begin an empty one.

        Args:
            overlength: the policy in force, which is never the advice.
            only_prompts: the rows have no response that could be cut.
        """
        self._ways_out = {**_WAYS_OUT, "too_long": _TOO_LONG[overlength]}
        if only_prompts and overlength is not Overlength.drop:
            self._ways_out["too_long"] = "raise data.max_length"
        if overlength is Overlength.keep_start:
            self._ways_out["nothing_to_learn"] = _TOO_LONG[overlength]
        self.rows: list[LedgerRow] = []
        self.notes: Counter[str] = Counter()
        self.keys = KeysSeen()
        self._files: dict[str, int] = {}

    def expect(self, sources: Iterable[str]) -> None:
        """Announce the rows that were read, so that files are listed in that order, whichever fate is known first."""
        for source in sources:
            self._files.setdefault(source.rpartition(":")[0], len(self._files))

    def keep(self, source: str, set: str = "train", *, num_parts: int = 1) -> None:
        """Enter a row that is used as it is, in several parts where its template rewrites earlier turns."""
        self.rows.append(LedgerRow(source, "kept", f"in {num_parts} parts" if num_parts > 1 else "", set))

    def truncate(self, source: str, reason: str, set: str = "train", *, num_parts: int = 1) -> None:
        """Enter a row that is cut, in several parts where its template rewrites earlier turns."""
        reason = f"{reason}, in {num_parts} parts" if num_parts > 1 else reason
        self.rows.append(LedgerRow(source, "truncated", reason, set))

    def drop(self, source: str, reason: str, set: str = "train", *, malformed: bool = False) -> None:
        """Enter a row that is left out; `malformed` says that the row itself is wrong, and `reason` what of it."""
        self.rows.append(LedgerRow(source, "dropped", f"malformed: {reason}" if malformed else reason, set))

    def counts(self) -> dict[str, dict[str, int]]:
        """Count rows by set, then by label (`kept`, `truncated: cut_end`, `dropped: too_long`)."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            counts[row.set][row.label] += 1
        return {name: dict(labels) for name, labels in counts.items()}

    def malformed(self) -> list[str]:
        """Return one line for each row that is wrong in itself: where it stands, and what of it."""
        prefix = "malformed: "
        return [f"{r.source}: {r.reason.removeprefix(prefix)}" for r in self.rows if r.reason.startswith(prefix)]

    def check_budget(self, max_dropped: float) -> None:
        """Refuse to go on with too little of a set.

        Args:
            max_dropped: share of a set's rows that may be dropped, 0 to 1; `UNBUDGETED` ones do not count.

        Raises:
            DataError: one line for each set that is over the budget or has no row left, with reasons and places.
        """
        by_set: dict[str, list[LedgerRow]] = {"train": []}
        for row in self.rows:
            by_set.setdefault(row.set, []).append(row)
        found = [_over_budget(name, rows, max_dropped, self._ways_out) for name, rows in by_set.items()]
        problems = list(filter(None, found))
        if problems:
            raise DataError(*problems)

    def write(self, path: Path) -> None:
        """Write one JSON object per row and line: `source`, `fate`, `reason`, `set`; in the order of the sources.

        A run that goes on is held to it: it is whole or not there.
        """
        aside = path.with_name(f".{path.name}")
        with aside.open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(asdict(row)) + "\n" for row in self.in_source_order())
        aside.replace(path)

    def table(self) -> str:
        """Return the summary as plain text: a line for each fate and reason, a column for each set, and examples."""
        counts = self.counts()
        lines = [["", *counts, ""]]
        for label, sources in _by_label(self.in_source_order()).items():
            numbers = [f"{counts[name].get(label, 0):,}" for name in counts]
            lines.append([_SAID.get(label, label), *numbers, "" if label == "kept" else _examples(sources)])
        lines.append(["all rows", *(f"{sum(labels.values()):,}" for labels in counts.values()), ""])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            [label.ljust(widths[0]), *map(str.rjust, numbers, widths[1:-1]), places]
            for label, *numbers, places in lines
        ]
        notes = [f"{note}: {count:,}" for note, count in self.notes.items()]
        return "\n".join(map(in_a_line, ["  ".join(line).rstrip() for line in aligned] + notes + self.keys.lines()))

    def in_source_order(self) -> list[LedgerRow]:
        """Sort the rows by file and number, as a reader looks for them; they are entered when work on them ends."""
        places = [row.source.rpartition(":") for row in self.rows]
        self.expect(row.source for row in self.rows)
        keys = [(self._files[file], int(number)) for file, _, number in places]
        return [self.rows[index] for index in sorted(range(len(keys)), key=keys.__getitem__)]


def _by_label(rows: Iterable[LedgerRow]) -> dict[str, list[str]]:
    """Sources by label: rows kept whole, kept in parts, truncated, dropped; among these the most frequent first."""
    sources: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        sources[row.label].append(row.source)
    fates = ("kept", "truncated", "dropped")

    def place(label: str) -> tuple[int, bool, int]:
        return fates.index(label.partition(":")[0]), label != "kept", -len(sources[label])

    return {label: sources[label] for label in sorted(sources, key=place)}


def _examples(sources: list[str]) -> str:
    return ", ".join([*sources[:NUM_EXAMPLES], "…"] if len(sources) > NUM_EXAMPLES else sources)


def _over_budget(name: str, rows: list[LedgerRow], max_dropped: float, known: Mapping[str, str]) -> str:
    where = "data" if name == "train" else f"data (set {name})"
    if not rows:
        return f"{where}: there are no rows"
    is_empty = all(row.fate == "dropped" for row in rows)
    if not is_empty:
        rows = [row for row in rows if row.reason not in UNBUDGETED]
    dropped = [row for row in rows if row.fate == "dropped"]
    share = len(dropped) / len(rows)
    if share <= max_dropped and not is_empty:
        return ""
    by_reason = {label.partition(": ")[2]: sources for label, sources in _by_label(dropped).items()}
    reasons = [f"{len(sources)} {reason} ({_examples(sources)})" for reason, sources in by_reason.items()]
    if len(reasons) > NUM_REASONS:
        reasons[NUM_REASONS:] = [f"… and {len(reasons) - NUM_REASONS} more reasons"]
    ways_out = list(dict.fromkeys(known[key] for r in by_reason if (key := r.partition(":")[0]) in known))
    if is_empty:
        verdict = f"no row is left of {len(rows)}"
    else:
        verdict = (
            f"{len(dropped)} of {len(rows)} rows were dropped ({100 * share:.3g} %), "
            f"more than data.max_dropped={max_dropped:g} allows"
        )
        ways_out.append("raise data.max_dropped")
    advice = ", or ".join([", ".join(ways_out[:-1])] * (len(ways_out) > 1) + ways_out[-1:])
    return f"{where}: {verdict}: {', '.join(reasons)}" + (f"; {advice}" if advice else "")
