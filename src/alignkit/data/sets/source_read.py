"""What was read of each source, for the first screen and for `alignkit inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.files.sources import Source, SourceRow, files_of


@dataclass(frozen=True, slots=True)
class SourceRead:
    """What was read of a source.

    Attributes:
        source: where from.
        format: as detected or named; empty where no row shows one.
        num_rows: that were read, malformed ones included.
        counts: how often each of them is used, by the source's weight.
        others: settings, in this set or an earlier one, that name the same files or hub data set, or some of them.
        all_again: they name all of them.
    """

    source: Source
    format: str
    num_rows: int
    counts: Sequence[int]
    others: tuple[str, ...] = ()
    all_again: bool = False

    def line(self, *, as_prompts: bool = False) -> str:
        """Say it in a line."""
        if not self.num_rows:
            return f"{self.source.path}: no row was read"
        without = ", without the responses" if as_prompts and self.format not in ("prompt", "text") else ""
        said = f"read as {self.format}{without}" if self.format else "none of which can be read"
        what = "it" if self.all_again else "some of it"
        also = f"; {' and '.join(self.others)} reads {what}, too" if self.others else ""
        rows = "1 row" if self.num_rows == 1 else f"{self.num_rows:,} rows"
        return f"{self.source.path}: {rows} {said}{self._weighed()}{also}"

    def _weighed(self) -> str:
        left_out, repeated = self.counts.count(0), sum(count - 1 for count in self.counts if count > 1)
        words = [f"{left_out:,} of them left out"] if left_out else []
        words += [f"{repeated:,} copies added"] if repeated else []
        return f", {' and '.join(words)} by weight {self.source.weight:g}" if words else ""


def shows_format(rows: Iterable[SourceRow]) -> bool:
    """Tell whether any row could be read, so that it shows a format, or one that was named is used."""
    return any(not row.problem and isinstance(row.row, dict) for row in rows)


def places_of(source: Source) -> Iterator[str]:
    """Yield what tells whether two sources are the same: each file, or the hub data set."""
    files = files_of(source.path)
    yield from (str(Path(file).resolve()) for file in files)
    if not files:
        yield f"{source.path} {source.split}"
