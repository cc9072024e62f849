"""Rows in chunks through an encoder, in several processes where asked for, and what became of each in the ledger."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Dataset, load_from_disk

from alignkit.data.sets.ledger import Ledger

CHUNK = 512  # rows in one call of the tokenizer: its threads pay off from a few hundred

Progress = Callable[[int], None]


class _Asked(Protocol):
    def prompt_key(self) -> str: ...


class _Noted(Protocol):
    @property
    def notes(self) -> tuple[str, ...]: ...


class _Sets(Protocol):
    def datasets(self) -> dict[str, Dataset]: ...


Item = TypeVar("Item", bound=_Asked)
Encoded = TypeVar("Encoded", bound=_Noted)
Data = TypeVar("Data", bound=_Sets)


@dataclass
class SourcedItem(Generic[Item]):
    """What a row says, with its place; `is_copy`: of a row with a weight above 1, which the ledger enters once."""

    source: str
    item: Item
    is_copy: bool = False


@dataclass
class EncodeOutcome(Generic[Encoded]):
    """A row as it will be trained on, or None where it is left out; and why it was cut or left out."""

    encoding: Encoded | None
    reason: str = ""


def encode_set(
    rows: list[SourcedItem[Item]],
    name: str,
    encode: Callable[[list[Item]], list[EncodeOutcome[Encoded]]],
    columns: Callable[[list[Encoded]], dict[str, pa.Array]],
    ledger: Ledger,
    *,
    num_proc: int,
    on_rows: Progress | None,
) -> Dataset:
    """Encode the rows of a set and enter the fate of each.

    Args:
        rows: with their places.
        name: of the set.
        encode: many rows at once; with several processes it is pickled.
        columns: encoded rows as columns of the data set.
        ledger: gets each row once.
        num_proc: processes that encode.
        on_rows: called with the number of rows each chunk encoded.

    Returns:
        `columns`, and with them `row_index` (0, 1, …) and `source` (`file:N`).
    """
    chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    work = ([row.item for row in chunk] for chunk in chunks)
    tables, sources = [], []
    for chunk, outcomes in zip(chunks, _mapped(encode, work, num_proc), strict=True):
        kept = record_outcomes(chunk, outcomes, name, ledger)
        sources += [source for source, _ in kept]
        tables.append(pa.table(columns([encoding for _, encoding in kept])))
        if on_rows is not None:
            on_rows(len(chunk))
    table = pa.concat_tables(tables) if tables else pa.table(columns([]))
    table = table.append_column("row_index", pa.array(range(len(sources)), pa.int32()))
    return Dataset(table.append_column("source", pa.array(sources, pa.string())))


def record_outcomes(
    chunk: list[SourcedItem[Item]], outcomes: list[EncodeOutcome[Encoded]], name: str, ledger: Ledger
) -> list[tuple[str, Encoded]]:
    """Enter the fates of encoded rows in the ledger; those that are trained on, each with its place."""
    kept = []
    for row, outcome in zip(chunk, outcomes, strict=True):
        if outcome.encoding is None:
            if not row.is_copy:
                ledger.drop(row.source, outcome.reason, name)
            continue
        if row.is_copy:
            pass
        elif outcome.reason:
            ledger.truncate(row.source, outcome.reason, name)
        else:
            ledger.keep(row.source, name)
        ledger.notes.update(outcome.encoding.notes)
        kept.append((row.source, outcome.encoding))
    return kept


def _mapped(
    function: Callable[[list[Item]], list[EncodeOutcome[Encoded]]], work: Iterator[list[Item]], num_proc: int
) -> Iterator[list[EncodeOutcome[Encoded]]]:
    if num_proc == 1:
        yield from map(function, work)
        return
    # Spawned, not forked: the tokenizer's threads do not survive a fork.
    with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn")) as pool:
        while batch := list(islice(work, num_proc * 4)):
            yield from pool.map(function, batch)


def exchanged(load: Callable[[], Data], folder: Path, rebuilt: Callable[[dict[str, Dataset]], Data]) -> Data:
    """Let the main process read and encode, and the others map what it wrote; the files are gone when all have them.

    Args:
        load: reads the data.
        folder: one that every process sees.
        rebuilt: the data of the other processes, from the rows by set name alone.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())  # unasked, it sees no other process on a CPU
    if state.num_processes == 1:
        return load()
    if state.is_main_process:
        data = load()
        for name, rows in data.datasets().items():
            rows.save_to_disk(str(folder / name))
        state.wait_for_everyone()
    else:
        state.wait_for_everyone()
        paths: list[Any] = sorted(folder.iterdir())
        data = rebuilt({path.name: load_from_disk(str(path), keep_in_memory=True) for path in paths})
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder)
    return data
