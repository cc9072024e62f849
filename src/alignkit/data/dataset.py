"""From the `data` section to encoded rows: sources, formats, encoding, length policy; every row is accounted for."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import PreTrainedTokenizerBase

from alignkit.config import DataConfig, Malformed
from alignkit.data.batching import FILLER, IGNORED
from alignkit.data.conversation import Conversation
from alignkit.data.formats import RowError, check_columns, detect_format, to_conversation
from alignkit.data.ledger import Ledger
from alignkit.data.lengths import apply_length
from alignkit.data.masking import Encoding, encode_rows
from alignkit.data.sources import Source, SourceRow, check_sources, parse_sources, read_rows, repeats
from alignkit.data.split import split_by_prompt
from alignkit.data.templates import Template
from alignkit.errors import AlignkitError, DataError

logger = logging.getLogger(__name__)

_LOOKED_AT = 10  # rows whose columns tell the format
CHUNK = 512  # rows in one call of the tokenizer: its threads pay off from a few hundred
NUM_FIRST = 1000  # rows of each source that are looked at before a stream is trained on

Progress = Callable[[int], None]


@dataclass
class EncodedSet:
    """Encoded rows of one set.

    Attributes:
        dataset: columns `input_ids`, `labels` (lists of int32), `row_index` (the row's number) and `source` (`file:N`).
    """

    dataset: Dataset

    @property
    def sources(self) -> list[str]:
        """`file:N` of each row."""
        return list(self.dataset["source"])

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row."""
        lengths: list[int] = pa.compute.list_value_length(self.dataset.data.column("input_ids")).to_pylist()
        return lengths

    @property
    def num_supervised(self) -> int:
        """Tokens that carry loss."""
        flat = pa.compute.list_flatten(self.dataset.data.column("labels"))
        return int(pa.compute.sum(pa.compute.not_equal(flat, -100)).as_py() or 0)

    def filled(self, multiple: int) -> EncodedSet:
        """The same rows followed by as few fillers as make their number a multiple of `multiple`.

        With several processes the last batch of an epoch would else repeat rows; a filler carries no loss.
        """
        missing = -len(self.dataset) % multiple
        if not missing:
            return self
        filler = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED], "row_index": FILLER, "source": "filler"}
        fillers = Dataset.from_list([filler] * missing, features=self.dataset.features)
        return EncodedSet(concatenate_datasets([self.dataset, fillers]))


@dataclass
class SftData:
    """Everything that was read.

    Attributes:
        train: rows to train on; with `data.streaming` the first of each source, and the others come as training goes.
        evals: held-out rows by set name (`eval` where there is one set).
        ledger: the fate of every source row.
        formats: format of each source, as detected or named.
        prompts: a few held-out conversations (training ones where nothing is held out), for samples.
    """

    train: EncodedSet
    evals: dict[str, EncodedSet]
    ledger: Ledger
    formats: dict[str, str] = field(default_factory=dict)
    prompts: list[Conversation] = field(default_factory=list)


@dataclass
class Named:
    """A conversation with its place; `is_copy`: of a row with a weight above 1, which the ledger enters once."""

    source: str
    conversation: Conversation
    is_copy: bool = False


def load_sft(
    data: DataConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    num_prompts: int = 0,
    on_rows: Progress | None = None,
) -> SftData:
    """Read, format, split, encode and cut every row the section names.

    Args:
        data: the section.
        template: bound to `tokenizer`.
        tokenizer: of the model.
        max_length: most tokens in a row.
        seed: of the evaluation split and of fractional source weights.
        num_prompts: how many conversations to keep for samples.
        on_rows: called with the number of rows each chunk encoded.

    Raises:
        DataError: malformed rows under `data.malformed=stop`, a broken drop budget, or nothing left to train on.
    """
    ledger = Ledger()
    formats: dict[str, str] = {}
    conversations = {
        name: list(_conversations(sources_of(data, name, path), name, data, ledger, formats, seed=seed))
        for name, path in _wanted(data).items()
    }
    if data.eval_fraction:
        rows = conversations["train"]
        keys = [row.conversation.prompt_key() for row in rows]
        kept, held_out = split_by_prompt(keys, fraction=data.eval_fraction, seed=seed)
        conversations["train"] = [rows[i] for i in kept]
        conversations["eval"] = [rows[i] for i in held_out]
    encode = partial(encode_chunk, template=template, tokenizer=tokenizer, data=data, max_length=max_length)
    sets = {
        name: _encode_set(rows, name, encode, ledger, data.num_proc, on_rows) for name, rows in conversations.items()
    }
    ledger.check_budget(data.max_dropped)
    shown = next((rows for name, rows in conversations.items() if name != "train"), conversations["train"])
    prompts = [row.conversation for row in shown if not row.conversation.plain][:num_prompts]
    return SftData(sets.pop("train"), sets, ledger, formats, prompts)


def check_data(data: DataConfig) -> list[str]:
    """What is wrong with the section before a row is read, one line each; empty where all is well."""
    problems = []
    if data.eval_path is not None and data.eval_fraction > 0:
        problems.append("data.eval_path and data.eval_fraction both name held-out rows: give one of them")
    for name, path in _wanted(data).items():
        try:
            check_sources(sources_of(data, name, path))
        except AlignkitError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def shared(load: Callable[[], SftData], folder: Path) -> SftData:
    """Let the main process read and encode, and the others map what it wrote; the files are gone when all have them.

    Args:
        load: reads the data.
        folder: one that every process sees.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())  # unasked, it sees no other process on a CPU
    if state.num_processes == 1:
        return load()
    if state.is_main_process:
        data = load()
        for name, rows in {"train": data.train, **data.evals}.items():
            rows.dataset.save_to_disk(str(folder / name))
        state.wait_for_everyone()
    else:
        state.wait_for_everyone()
        sets = {path.name: EncodedSet(load_from_disk(str(path), keep_in_memory=True)) for path in folder.iterdir()}
        data = SftData(sets.pop("train"), dict(sorted(sets.items())), Ledger())
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder)
    return data


def _wanted(data: DataConfig) -> dict[str, Any]:
    """The sets to read: `train` and the held-out ones, each with its path or paths."""
    held_out = data.eval_path if isinstance(data.eval_path, dict) else {"eval": data.eval_path}
    return {"train": data.path} | {str(name): path for name, path in held_out.items() if path is not None}


def sources_of(data: DataConfig, name: str, path: Any) -> list[Source]:
    """The sources of a set: of `train`, or of held-out rows."""
    setting, split = ("data.path", data.split) if name == "train" else ("data.eval_path", None)
    return parse_sources(path, setting=setting, format=data.format, columns=data.columns, split=split)


def _conversations(
    sources: Iterable[Source], name: str, data: DataConfig, ledger: Ledger, formats: dict[str, str], *, seed: int
) -> Iterator[Named]:
    """Rows of a set as conversations; malformed ones are dropped into the ledger, or stop the run all together."""
    malformed: list[str] = []
    left = data.limit
    for number, source in enumerate(sources):
        limits = [left, NUM_FIRST if data.streaming and name == "train" else None]
        rows = list(read_rows(source, limit=min((n for n in limits if n is not None), default=None)))
        if left is not None:
            left -= len(rows)
        formats[source.path] = format_of(source, rows)
        times = repeats(len(rows), weight=source.weight, seed=seed + number)
        found, problems = conversations_of(rows, times, formats[source.path], source.columns, name, ledger)
        yield from found
        malformed += problems
    stop_if_malformed(malformed, data.malformed)


def conversations_of(
    rows: Sequence[SourceRow], times: Sequence[int], format_: str, columns: dict[str, Any], name: str, ledger: Ledger
) -> tuple[list[Named], list[str]]:
    """Rows as conversations, each as many times as asked for; the ledger gets those that are none.

    Returns:
        The conversations, and one line for each malformed row.
    """
    found: list[Named] = []
    malformed = []
    ledger.expect(row.source for row in rows)
    for row, num in zip(rows, times, strict=True):
        try:
            conversation = _conversation(row, format_, columns)
        except RowError as error:
            malformed.append(f"{row.source}: {error}")
            ledger.drop(row.source, str(error), name, malformed=True)
            continue
        if not num:
            ledger.drop(row.source, "weight", name)
        found += (Named(row.source, conversation, is_copy=copy > 0) for copy in range(num))
    return found, malformed


def stop_if_malformed(lines: list[str], policy: Malformed) -> None:
    """Refuse malformed rows where the policy says so, all of them together.

    Raises:
        DataError: one line for each.
    """
    if lines and policy == Malformed.stop:
        way_out = f"{len(lines)} malformed rows: mend them, or leave them out with data.malformed=drop"
        raise DataError(*([way_out] if len(lines) > 1 else []), *lines)


def format_of(source: Source, rows: Sequence[SourceRow]) -> str:
    """The format of a source, told by its first rows where none was named.

    Raises:
        DataError: no format, or more than one, fits the columns; or a column that was named is not there.
    """
    first = [row.row for row in rows if not row.problem and isinstance(row.row, dict)][:_LOOKED_AT]
    if not first:
        return "text"  # every row is malformed and will say so itself
    found = dict.fromkeys(key for row in first for key in row)
    if source.format == "auto":
        return detect_format(found, first[0], columns=source.columns)
    check_columns(found, source.columns)
    return source.format


def _conversation(row: SourceRow, format_: str, columns: dict[str, Any]) -> Conversation:
    if row.problem:
        raise RowError(row.problem)
    return to_conversation(row.row, format_, columns)


@dataclass
class Fate:
    """A row as it will be trained on, or None where it is left out; and why it was cut or left out."""

    encoding: Encoding | None
    reason: str = ""


def encode_chunk(
    conversations: list[Conversation],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    max_length: int,
) -> list[Fate]:
    """Encode conversations with one call of the tokenizer, and hold them to `max_length`."""
    fates = []
    encodings = encode_rows(
        conversations, template, tokenizer, train_on=data.train_on, control_tokens=data.control_tokens
    )
    for encoding in encodings:
        if isinstance(encoding, str):
            fates.append(Fate(None, encoding))
        else:
            fates.append(Fate(*apply_length(encoding, max_length=max_length, policy=data.overlength)))
    return fates


def _encode_set(
    rows: list[Named],
    name: str,
    encode: Callable[[list[Conversation]], list[Fate]],
    ledger: Ledger,
    num_proc: int,
    on_rows: Progress | None,
) -> EncodedSet:
    chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    work = ([row.conversation for row in chunk] for chunk in chunks)
    tables, sources = [], []
    for chunk, fates in zip(chunks, _mapped(encode, work, num_proc), strict=True):
        kept = entered(chunk, fates, name, ledger)
        sources += [source for source, _ in kept]
        tables.append(_table([encoding for _, encoding in kept]))
        if on_rows is not None:
            on_rows(len(chunk))
    table = pa.concat_tables(tables) if tables else _table([])
    table = table.append_column("row_index", pa.array(range(len(sources)), pa.int32()))
    return EncodedSet(Dataset(table.append_column("source", pa.array(sources, pa.string()))))


def entered(chunk: list[Named], fates: list[Fate], name: str, ledger: Ledger) -> list[tuple[str, Encoding]]:
    """Enter the fates of encoded rows in the ledger; those that are trained on, each with its place."""
    kept = []
    for row, fate in zip(chunk, fates, strict=True):
        if fate.encoding is None:
            if not row.is_copy:
                ledger.drop(row.source, fate.reason, name)
            continue
        if row.is_copy:
            pass
        elif fate.reason:
            ledger.truncate(row.source, fate.reason, name)
        else:
            ledger.keep(row.source, name)
        ledger.notes.update(fate.encoding.notes)
        kept.append((row.source, fate.encoding))
    return kept


def labels_of(encoding: Encoding) -> list[int]:
    """The labels of a row; nothing predicts its first token."""
    return [IGNORED, *encoding.labels[1:]]


def _mapped(
    function: Callable[[list[Conversation]], list[Fate]], work: Iterator[list[Conversation]], num_proc: int
) -> Iterator[list[Fate]]:
    if num_proc == 1:
        yield from map(function, work)
        return
    # Spawned, not forked: the tokenizer's threads do not survive a fork.
    with ProcessPoolExecutor(num_proc, mp_context=get_context("spawn")) as pool:
        while batch := list(islice(work, num_proc * 4)):
            yield from pool.map(function, batch)


def _table(encodings: list[Encoding]) -> pa.Table:
    lists = pa.list_(pa.int32())
    return pa.table(
        {
            "input_ids": pa.array([e.input_ids for e in encodings], lists),
            "labels": pa.array([labels_of(e) for e in encodings], lists),
        }
    )
