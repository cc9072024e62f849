"""From the sources of each set to items: what every row says, or why it is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from alignkit.choices import Malformed
from alignkit.config import DataConfig
from alignkit.data.files.sources import Source, SourceRow, read_rows, repeat_counts
from alignkit.data.rows.columns import check_columns, check_fields
from alignkit.data.rows.row_kind import RowKind
from alignkit.data.rows.values import RowError, RowUnusable
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.section import paths_by_set, sources_of
from alignkit.data.sets.source_read import SourceRead, places_of, shows_format
from alignkit.errors import DataError

NUM_FIRST = 1000  # rows of each source that are read before a stream is trained on

_NUM_DETECTED = 10  # rows whose columns tell the format


class _Promptful(Protocol):
    def with_system(self, words: str) -> Self: ...

    def prompt_key(self) -> str: ...

    def beginning_key(self) -> str: ...

    def exchange_chains(self) -> list[list[str]]: ...


Item = TypeVar("Item", bound=_Promptful)


@dataclass
class SourcedItem(Generic[Item]):
    """What a row says, and where it stands.

    Attributes:
        source: `file:N`.
        item: the row parsed: a conversation, a preference pair, ….
        is_copy: a further copy of a row with a weight above 1; the ledger counts the row once.
    """

    source: str
    item: Item
    is_copy: bool = False


@dataclass(frozen=True)
class RowBlock:
    """Rows of one source that are parsed together.

    Attributes:
        source: where they come from.
        format: how they are parsed: a name, or `module:function`.
        rows: as they were read.
        counts: how often each is used; 0 leaves it out.
    """

    source: Source
    format: str
    rows: Sequence[SourceRow]
    counts: Sequence[int]

    def summary(self, settings: dict[str, str]) -> SourceRead:
        """Say what was read; `settings` has what named each file so far, and is told."""
        places = list(places_of(self.source)) if self.rows else []
        again = [settings[place] for place in places if place in settings]
        settings |= {place: settings.get(place, self.source.setting) for place in places}
        format_ = self.format if shows_format(self.rows) else ""
        return SourceRead(
            self.source, format_, len(self.rows), self.counts, tuple(dict.fromkeys(again)), len(again) == len(places)
        )


def read_sets(data: DataConfig, kind: RowKind[Any], *, seed: int) -> dict[str, Iterator[RowBlock]]:
    """Read the rows of every set, one source at a time and only as they are asked for.

    Args:
        data: the section.
        kind: what the rows are parsed as; tells the format of a source where none was named.
        seed: of fractional source weights.

    Returns:
        A block for each source by set name, `train` first. Taking a block raises a `DataError` where the source cannot
        be read or its columns fit no format.
    """
    return {name: _read_set(data, name, kind, seed=seed) for name in paths_by_set(data)}


def _read_set(data: DataConfig, name: str, kind: RowKind[Any], *, seed: int) -> Iterator[RowBlock]:
    left = data.limit
    for number, source in enumerate(sources_of(data, name, kind)):
        limits = [left, NUM_FIRST if data.streaming and name == "train" else None]
        limit = min((n for n in limits if n is not None), default=None)
        rows = list(read_rows(source, limit=limit, max_row_bytes=data.max_row_bytes))
        if left is not None:
            left -= len(rows)
        counts = repeat_counts(len(rows), weight=source.weight, seed=seed + number)
        yield RowBlock(source, find_format(source, rows, kind), rows, counts)


def find_format(source: Source, rows: Sequence[SourceRow], kind: RowKind[Any]) -> str:
    """Return the format that was named for a source, or the one that its first rows show.

    Raises:
        DataError: no format, or more than one, fits the columns; or a column that was named is not there.
    """
    first = [row.row for row in rows if not row.problem and isinstance(row.row, dict)][:_NUM_DETECTED]
    if not first:
        return kind.fallback  # every row is malformed and will say so itself
    found = dict.fromkeys(key for row in first for key in row)
    if source.format == "auto":
        format_ = kind.detect(found, first[0], columns=source.columns)
        check_fields(source.columns, format_, kind.fields[format_])
        return format_
    check_columns(found, source.columns)
    return source.format


def parse_sets(
    rows: Mapping[str, Iterator[RowBlock]], kind: RowKind[Item], ledger: Ledger, *, malformed: Malformed
) -> tuple[dict[str, list[SourcedItem[Item]]], list[SourceRead]]:
    """Parse the rows of every set.

    Args:
        rows: of each set.
        kind: what they are parsed as.
        ledger: gets the rows that are left out.
        malformed: what to do about malformed rows.

    Returns:
        Items by set name, in the order of the rows; and what was read of each source.

    Raises:
        DataError: malformed rows of a set under `malformed=stop`, one line each.
    """
    items: dict[str, list[SourcedItem[Item]]] = {}
    read: list[SourceRead] = []
    settings: dict[str, str] = {}
    for name, blocks in rows.items():
        items[name] = []
        problems: list[str] = []
        for block in blocks:
            read.append(block.summary(settings))
            parsed, wrong = parse_block(block, kind, name, ledger)
            items[name] += parsed
            problems += wrong
        stop_if_malformed(problems, malformed)
    return items, read


def parse_block(
    block: RowBlock, kind: RowKind[Item], name: str, ledger: Ledger
) -> tuple[list[SourcedItem[Item]], list[str]]:
    """Parse rows, each into as many items as it is counted; those that are left out go into the ledger of set `name`.

    Returns:
        The items, and one line for each malformed row.
    """
    items: list[SourcedItem[Item]] = []
    malformed = []
    ledger.expect(row.source for row in block.rows)
    for row, count in zip(block.rows, block.counts, strict=True):
        try:
            if row.problem:
                raise RowError(row.problem)
            item = kind.convert(row.row, block.format, block.source.columns, ledger.keys)
        except RowUnusable as error:
            ledger.drop(row.source, str(error), name)
            continue
        except RowError as error:
            malformed.append(f"{row.source}: {error}")
            ledger.drop(row.source, str(error), name, malformed=True)
            continue
        if not count:
            ledger.drop(row.source, "weight", name)
        items += (SourcedItem(row.source, item, is_copy=copy > 0) for copy in range(count))
    return items, malformed


def stop_if_malformed(problems: list[str], policy: Malformed) -> None:
    """Refuse malformed rows where the policy says so, all of them together.

    Raises:
        DataError: one line for each.
    """
    if problems and policy == Malformed.stop:
        if len(problems) == 1:
            raise DataError(f"{problems[0]}; fix the row, or leave it out with data.malformed=drop")
        raise DataError(
            f"{len(problems)} malformed rows: fix them, or leave them out with data.malformed=drop", *problems
        )
