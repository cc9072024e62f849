"""Items through an encoder, in several processes where asked for; what became of each goes into the ledger.

Everything here is lazy: a chunk of rows is encoded, recorded and turned into columns before the next one is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Any, Generic, Protocol, Self, TypeVar

import pyarrow as pa
from datasets import Dataset

from alignkit.data.encode.rendering import RowRefused
from alignkit.data.sets.items import Item, SourcedItem
from alignkit.data.sets.ledger import Ledger
from alignkit.errors import MemoryShortage

COPIES = "copies added by weight"
# A worker imports for about 5 s before its first row, in which one process encodes thousands of them.
WORKERS_FROM = 10_000
CHUNK = 512  # rows in one call of the tokenizer: its threads pay off from a few hundred


class _Noted(Protocol):
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def template_kwargs(self) -> Mapping[str, Any]: ...
    @property
    def cuts(self) -> Mapping[str, int]: ...


Encoded = TypeVar("Encoded", bound=_Noted)


@dataclass
class EncodeOutcome(Generic[Encoded]):
    """What became of an item.

    Attributes:
        parts: the row as it will be trained on, most often as one; none where it is left out.
        reason: why it was cut or left out; empty where it is whole.
        malformed: the row itself is wrong, which only its template could tell.
    """

    parts: list[Encoded] = field(default_factory=list)
    reason: str = ""
    malformed: bool = False

    @classmethod
    def left_out(cls, refusal: RowRefused) -> Self:
        """Say why a row is left out."""
        return cls([], refusal.reason, refusal.malformed)


def encode_sets(
    items: Mapping[str, list[SourcedItem[Item]]],
    encode: Callable[[list[Item]], list[EncodeOutcome[Encoded]]],
    *,
    num_proc: int,
) -> dict[str, Iterator[EncodeOutcome[Encoded]]]:
    """Encode the items of every set, `CHUNK` at a time and only as they are asked for.

    Args:
        items: by set name.
        encode: many items at once; with several processes it is pickled.
        num_proc: processes that encode a set of `WORKERS_FROM` rows or more.

    Returns:
        The outcome of each item, by set name.
    """
    return {name: _encode_set(of_set, encode, num_proc) for name, of_set in items.items()}


def _encode_set(
    items: list[SourcedItem[Item]], encode: Callable[[list[Item]], list[EncodeOutcome[Encoded]]], num_proc: int
) -> Iterator[EncodeOutcome[Encoded]]:
    chunks = ([item.item for item in items[start : start + CHUNK]] for start in range(0, len(items), CHUNK))
    if num_proc == 1 or len(items) < WORKERS_FROM:
        for chunk in chunks:
            yield from encode(chunk)
        return
    # Spawned, not forked: the tokenizer's threads do not survive a fork.
    with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn"), initializer=_leave_signals) as pool:
        while batch := list(islice(chunks, num_proc * 4)):
            try:
                for outcomes in pool.map(encode, batch):
                    yield from outcomes
            except BrokenProcessPool as error:
                raise MemoryShortage(
                    "data.num_proc: a process that encodes rows was ended from outside, as the system does where "
                    f"memory is short: lower it from {num_proc}; nothing was trained yet"
                ) from error


def _leave_signals() -> None:
    """Let the process that started this one end both.

    A terminal or a scheduler signals a whole group: each would print where it was, or leave the pool half ended.
    """
    os.setpgid(0, 0)


def record_sets(
    items: Mapping[str, list[SourcedItem[Item]]],
    outcomes: Mapping[str, Iterable[EncodeOutcome[Encoded]]],
    ledger: Ledger,
) -> dict[str, Iterator[tuple[str, Encoded]]]:
    """Record what became of the items of every set; see `record_outcomes`."""
    return {name: record_outcomes(of_set, outcomes[name], name, ledger) for name, of_set in items.items()}


def record_outcomes(
    items: Iterable[SourcedItem[Item]], outcomes: Iterable[EncodeOutcome[Encoded]], name: str, ledger: Ledger
) -> Iterator[tuple[str, Encoded]]:
    """Record in the ledger what became of the items of set `name`.

    Yields:
        `file:N` and encoding of each part of each item that is trained on.
    """
    for item, outcome in zip(items, outcomes, strict=True):
        if not item.is_copy:
            _record(item.source, outcome, name, ledger)
        elif outcome.parts:
            ledger.notes[COPIES] += 1
        for part in outcome.parts:
            ledger.notes.update(part.notes)
            yield item.source, part


def _record(source: str, outcome: EncodeOutcome[Encoded], name: str, ledger: Ledger) -> None:
    if not outcome.parts:
        ledger.drop(source, outcome.reason, name, malformed=outcome.malformed)
    elif outcome.reason:
        ledger.truncate(source, outcome.reason, name, num_parts=len(outcome.parts))
    else:
        ledger.keep(source, name, num_parts=len(outcome.parts))


def to_datasets(
    kept: Mapping[str, Iterator[tuple[str, Encoded]]], columns: Callable[[list[Encoded]], dict[str, pa.Array]]
) -> dict[str, Dataset]:
    """Turn encoded rows into one data set for each set.

    Args:
        kept: `file:N` and encoding of each row, by set name.
        columns: encodings as columns of a table.

    Returns:
        `columns`, and with them `row_index` (0, 1, …), `source` (`file:N`), `template_kwargs` and `cuts` (JSON,
        no documents).
    """
    return {name: _to_dataset(rows, columns) for name, rows in kept.items()}


def _to_dataset(
    kept: Iterator[tuple[str, Encoded]], columns: Callable[[list[Encoded]], dict[str, pa.Array]]
) -> Dataset:
    tables, sources, kwargs, cuts = [pa.table(columns([]))], [], [], []
    while chunk := list(islice(kept, CHUNK)):
        sources += [source for source, _ in chunk]
        kwargs += [_as_text(encoding.template_kwargs) for _, encoding in chunk]
        cuts += [_as_text(encoding.cuts) for _, encoding in chunk]
        tables.append(pa.table(columns([encoding for _, encoding in chunk])))
    table = pa.concat_tables(tables)
    table = table.append_column("row_index", pa.array(range(len(sources)), pa.int32()))
    table = table.append_column("template_kwargs", pa.array(kwargs, pa.string()))
    table = table.append_column("cuts", pa.array(cuts, pa.string()))
    return Dataset(table.append_column("source", pa.array(sources, pa.string())))


def _as_text(values: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in values.items() if name != "documents"}) if values else "{}"
