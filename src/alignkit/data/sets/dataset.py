"""From the `data` section to encoded rows: sources, formats, encoding, length policy; every row is accounted for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from alignkit.config import DataConfig, Malformed
from alignkit.data.batches.batching import FILLER, IGNORED
from alignkit.data.encode.lengths import apply_length
from alignkit.data.encode.masking import Encoding, encode_rows
from alignkit.data.encode.templates import Template
from alignkit.data.files.sources import Source, SourceRow, check_sources, parse_sources, read_rows, repeat_counts
from alignkit.data.rows.columns import check_columns
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.row_kind import CONVERSATIONS, RowKind
from alignkit.data.rows.turns import RowError, RowUnusable
from alignkit.data.sets.encode_sets import EncodeOutcome, Item, Progress, SourcedItem, encode_set, exchanged
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.split import split_by_prompt
from alignkit.errors import AlignkitError, DataError

logger = logging.getLogger(__name__)

_LOOKED_AT = 10  # rows whose columns tell the format
NUM_FIRST = 1000  # rows of each source that are looked at before a stream is trained on


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

    def datasets(self) -> dict[str, Dataset]:
        """The rows by set name."""
        return {name: rows.dataset for name, rows in {"train": self.train, **self.evals}.items()}


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
    rows, formats = read_sets(data, CONVERSATIONS, ledger, seed=seed)
    encode = partial(encode_chunk, template=template, tokenizer=tokenizer, data=data, max_length=max_length)
    sets = {
        name: EncodedSet(encode_set(named, name, encode, _columns, ledger, num_proc=data.num_proc, on_rows=on_rows))
        for name, named in rows.items()
    }
    ledger.check_budget(data.max_dropped)
    prompts = [row.item for row in sample_rows(rows) if not row.item.plain][:num_prompts]
    return SftData(sets.pop("train"), sets, ledger, formats, prompts)


def read_sets(
    data: DataConfig, kind: RowKind[Item], ledger: Ledger, *, seed: int
) -> tuple[dict[str, list[SourcedItem[Item]]], dict[str, str]]:
    """Read and format every row the section names, and hold out the share it asks for.

    Args:
        data: the section.
        kind: what a row is read as.
        ledger: gets the rows that are left out.
        seed: of the evaluation split and of fractional source weights.

    Returns:
        Rows by set name, `train` first; and the format of each source.

    Raises:
        DataError: malformed rows under `data.malformed=stop`, or columns that fit no format.
    """
    formats: dict[str, str] = {}
    sets = {
        name: list(_read(sources_of(data, name, path, kind), name, data, kind, ledger, formats, seed=seed))
        for name, path in _paths_by_set(data).items()
    }
    if data.eval_fraction:
        rows = sets["train"]
        keys = [row.item.prompt_key() for row in rows]
        kept, held_out = split_by_prompt(keys, fraction=data.eval_fraction, seed=seed)
        sets["train"], sets["eval"] = [rows[i] for i in kept], [rows[i] for i in held_out]
    return sets, formats


def sample_rows(sets: dict[str, list[SourcedItem[Item]]]) -> list[SourcedItem[Item]]:
    """The rows from which samples are taken: held-out ones, or training ones where nothing is held out."""
    return next((rows for name, rows in sets.items() if name != "train"), sets["train"])


def check_data(data: DataConfig, kind: RowKind[Any] = CONVERSATIONS) -> list[str]:
    """What is wrong with the section before a row is read, one line each; empty where all is well."""
    problems = []
    if data.eval_path is not None and data.eval_fraction > 0:
        problems.append("data.eval_path and data.eval_fraction both name held-out rows: give one of them")
    for name, path in _paths_by_set(data).items():
        try:
            check_sources(sources_of(data, name, path, kind))
        except AlignkitError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def shared(load: Callable[[], SftData], folder: Path) -> SftData:
    """Read and encode in the main process alone; see `encoded.exchanged`."""
    return exchanged(load, folder, _rebuilt)


def _rebuilt(datasets: dict[str, Dataset]) -> SftData:
    sets = {name: EncodedSet(dataset) for name, dataset in datasets.items()}
    return SftData(sets.pop("train"), sets, Ledger())


def _paths_by_set(data: DataConfig) -> dict[str, Any]:
    """The sets to read: `train` and the held-out ones, each with its path or paths."""
    held_out = data.eval_path if isinstance(data.eval_path, dict) else {"eval": data.eval_path}
    return {"train": data.path} | {str(name): path for name, path in held_out.items() if path is not None}


def sources_of(data: DataConfig, name: str, path: Any, kind: RowKind[Any] = CONVERSATIONS) -> list[Source]:
    """The sources of a set: of `train`, or of held-out rows."""
    setting, split = ("data.path", data.split) if name == "train" else ("data.eval_path", None)
    return parse_sources(
        path, setting=setting, format=data.format, columns=data.columns, split=split, fields=kind.fields
    )


def _read(
    sources: Iterable[Source],
    name: str,
    data: DataConfig,
    kind: RowKind[Item],
    ledger: Ledger,
    formats: dict[str, str],
    *,
    seed: int,
) -> Iterator[SourcedItem[Item]]:
    """What the rows of a set say; malformed ones are dropped into the ledger, or stop the run all together."""
    malformed: list[str] = []
    left = data.limit
    for number, source in enumerate(sources):
        limits = [left, NUM_FIRST if data.streaming and name == "train" else None]
        rows = list(read_rows(source, limit=min((n for n in limits if n is not None), default=None)))
        if left is not None:
            left -= len(rows)
        formats[source.path] = format_of(source, rows, kind)
        counts = repeat_counts(len(rows), weight=source.weight, seed=seed + number)
        found, problems = items_of(rows, counts, formats[source.path], source.columns, name, kind, ledger)
        yield from found
        malformed += problems
    stop_if_malformed(malformed, data.malformed)


def items_of(
    rows: Sequence[SourceRow],
    counts: Sequence[int],
    format_: str,
    columns: dict[str, Any],
    name: str,
    kind: RowKind[Item],
    ledger: Ledger,
) -> tuple[list[SourcedItem[Item]], list[str]]:
    """What rows say, each as often as it is counted; the ledger gets those that say nothing of use.

    Returns:
        The items, and one line for each malformed row.
    """
    found: list[SourcedItem[Item]] = []
    malformed = []
    ledger.expect(row.source for row in rows)
    for row, num in zip(rows, counts, strict=True):
        try:
            if row.problem:
                raise RowError(row.problem)
            item = kind.convert(row.row, format_, columns)
        except RowUnusable as error:
            ledger.drop(row.source, str(error), name)
            continue
        except RowError as error:
            malformed.append(f"{row.source}: {error}")
            ledger.drop(row.source, str(error), name, malformed=True)
            continue
        if not num:
            ledger.drop(row.source, "weight", name)
        found += (SourcedItem(row.source, item, is_copy=copy > 0) for copy in range(num))
    return found, malformed


def stop_if_malformed(lines: list[str], policy: Malformed) -> None:
    """Refuse malformed rows where the policy says so, all of them together.

    Raises:
        DataError: one line for each.
    """
    if lines and policy == Malformed.stop:
        way_out = f"{len(lines)} malformed rows: mend them, or leave them out with data.malformed=drop"
        raise DataError(*([way_out] if len(lines) > 1 else []), *lines)


def format_of(source: Source, rows: Sequence[SourceRow], kind: RowKind[Any]) -> str:
    """The format of a source, told by its first rows where none was named.

    Raises:
        DataError: no format, or more than one, fits the columns; or a column that was named is not there.
    """
    first = [row.row for row in rows if not row.problem and isinstance(row.row, dict)][:_LOOKED_AT]
    if not first:
        return kind.fallback  # every row is malformed and will say so itself
    found = dict.fromkeys(key for row in first for key in row)
    if source.format == "auto":
        return kind.detect(found, first[0], columns=source.columns)
    check_columns(found, source.columns)
    return source.format


def encode_chunk(
    conversations: list[Conversation],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    max_length: int,
) -> list[EncodeOutcome[Encoding]]:
    """Encode conversations with one call of the tokenizer, and hold them to `max_length`."""
    outcomes: list[EncodeOutcome[Encoding]] = []
    encodings = encode_rows(
        conversations, template, tokenizer, train_on=data.train_on, control_tokens=data.control_tokens
    )
    for encoding in encodings:
        if isinstance(encoding, str):
            outcomes.append(EncodeOutcome(None, encoding))
        else:
            outcomes.append(EncodeOutcome(*apply_length(encoding, max_length=max_length, policy=data.overlength)))
    return outcomes


def labels_of(encoding: Encoding) -> list[int]:
    """The labels of a row; nothing predicts its first token."""
    return [IGNORED, *encoding.labels[1:]]


def _columns(encodings: list[Encoding]) -> dict[str, pa.Array]:
    lists = pa.list_(pa.int32())
    return {
        "input_ids": pa.array([e.input_ids for e in encodings], lists),
        "labels": pa.array([labels_of(e) for e in encodings], lists),
    }
