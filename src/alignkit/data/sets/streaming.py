"""Rows that are read while the model trains, for data that does not fit: pass after pass, as one epoch without end.

One long epoch, because upstream's trainer can go on in the middle of an iterable data set, but not in its second pass.
Every process reads all rows and takes its share of each batch.
"""

from __future__ import annotations

import json
import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features, IterableDataset, List, Value
from datasets.iterable_dataset import ExamplesIterable
from transformers import PreTrainedTokenizerBase

from alignkit.choices import Batching
from alignkit.config import DataConfig
from alignkit.data.encode.templates import Template
from alignkit.data.files.sources import read_rows
from alignkit.data.rows.row_kind import CONVERSATIONS
from alignkit.data.sets.encode_sets import CHUNK, record_outcomes
from alignkit.data.sets.items import NUM_FIRST, RowBlock, find_format, parse_block, stop_if_malformed
from alignkit.data.sets.ledger import NUM_EXAMPLES, NUM_REASONS, UNBUDGETED, Ledger, LedgerRow
from alignkit.data.sets.section import sources_of
from alignkit.data.sets.sft import encode_chunk, labels_of
from alignkit.data.sets.system import give_system
from alignkit.errors import AlignkitError, DataError

BUFFER = 10_000  # encoded rows among which the next one is drawn
REMEMBERED = 1 << 16  # rows whose sources are kept: many times those of the batches that are on their way to a step

_FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "row_index": Value("int32"),
        "source": Value("string"),
    }
)


def check_streaming(data: DataConfig, train: Mapping[str, Any], *, keep_best: bool) -> list[str]:
    """List the settings that need every row to be known, one line each; empty where all is well.

    Args:
        data: the section.
        train: the trainer's arguments.
        keep_best: the result is the checkpoint with the lowest held-out loss.
    """
    on = "data.streaming=true"
    problems = []
    max_steps = train.get("max_steps")
    if not isinstance(max_steps, int) or max_steps < 1:
        problems.append(f"{on} needs train.max_steps: the number of rows is not known, so neither is that of steps")
    if data.eval_fraction:
        problems.append(f"{on}: no share can be held out of rows that are not all known: give data.eval_path instead")
    elif data.eval_path is None:
        problems.append(f"{on} needs held-out rows of their own: give data.eval_path")
    if data.batching is Batching.grouped:
        problems.append(f"{on}: data.batching=grouped needs every row's length: take auto, packed or padded")
    if data.num_proc > 1:
        problems.append(f"{on}: rows are encoded by the process that trains: leave data.num_proc at 1")
    if train.get("dataloader_num_workers"):
        problems.append(f"{on}: rows are read by the process that trains: leave train.dataloader_num_workers out")
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if train.get(key) == "epoch" or (
            key == "eval_strategy" and keep_best and not {key, "eval_steps"} & train.keys()
        ):
            problems.append(f"{on}: an epoch has no end: give train.{key}=steps and train.{key.split('_')[0]}_steps")
    return problems + _fractions(data)


def _fractions(data: DataConfig) -> list[str]:
    try:
        sources = sources_of(data)
    except AlignkitError:
        return []  # `check_data` tells these
    return [
        f"{source.setting}.weight is {source.weight:g}: data.streaming=true takes whole numbers only, because a share "
        "of the rows can be drawn only when all are known"
        for source in sources
        if source.weight != int(source.weight)
    ]


class RunningLedger(Ledger):
    """A ledger that does not grow with the data: rows go to a file, their counts and first sources stay.

    Args:
        path: of the file, which is written anew; None in a process that does not write.
        held_out: rows that were entered before; they come first.
    """

    def __init__(self, path: Path | None, held_out: Iterable[LedgerRow] = ()) -> None:
        super().__init__()
        self._path = path
        self._counts: dict[str, Counter[str]] = defaultdict(Counter, train=Counter())
        first = Ledger()
        first.rows = list(held_out)
        if path is not None:
            first.write(path)
        self._count(first.rows)

    def enter(self, rows: Iterable[LedgerRow]) -> None:
        """Count rows and append them to the file."""
        rows = list(rows)
        self._count(rows)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:  # closed, so that it outlives a killed process
                stream.writelines(json.dumps(asdict(row)) + "\n" for row in rows)

    def _count(self, rows: Iterable[LedgerRow]) -> None:
        for row in rows:
            self._counts[row.set][row.label] += 1
            if self._counts[row.set][row.label] <= NUM_EXAMPLES + 1:  # one more than is shown says that there are more
                self.rows.append(row)

    def counts(self) -> dict[str, dict[str, int]]:
        return {name: dict(labels) for name, labels in self._counts.items()}

    def check_budget(self, max_dropped: float) -> None:
        """Refuse to go on when too many of the training rows so far were dropped, once they are `NUM_FIRST`.

        Args:
            max_dropped: share of the rows that may be dropped, 0 to 1.

        Raises:
            DataError: the budget is broken; with reasons and first places.
        """
        unbudgeted = {f"dropped: {reason}" for reason in UNBUDGETED}
        labels = Counter({label: n for label, n in self._counts["train"].items() if label not in unbudgeted})
        dropped = Counter({label: number for label, number in labels.items() if label.startswith("dropped")})
        share = dropped.total() / max(labels.total(), 1)
        if labels.total() < NUM_FIRST or share <= max_dropped:
            return
        reasons = []
        for label, number in dropped.most_common(NUM_REASONS):
            sources = [row.source for row in self.rows if (row.set, row.label) == ("train", label)][:NUM_EXAMPLES]
            shown = ", ".join([*sources, "…"] if number > len(sources) else sources)
            reasons.append(f"{number} {label.partition(': ')[2]} ({shown})")
        raise DataError(
            f"data: {dropped.total()} of the {labels.total()} rows read so far were dropped ({100 * share:.3g} %), "
            f"more than data.max_dropped={max_dropped:g} allows: {', '.join(reasons)}; fix or leave out such rows, or "
            "raise data.max_dropped"
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that waits to be drawn; arrays, because lists of numbers take nine times their room."""

    source: str
    input_ids: array[int]
    labels: array[int]


class Stream:
    """Training rows as they are read.

    Args:
        data: the section; `check_streaming` has passed it.
        template: bound to `tokenizer`.
        tokenizer: of the model.
        max_length: most tokens in a row.
        seed: of the order; each pass has another.

    Attributes:
        sources: `file:N` of the last `REMEMBERED` rows by `row_index`, which counts round and round.
        ledger: what becomes of every source row, entered as it passes for the first time; None until `begin`.
    """

    def __init__(
        self, data: DataConfig, template: Template, tokenizer: PreTrainedTokenizerBase, *, max_length: int, seed: int
    ) -> None:
        self.sources = [""] * REMEMBERED
        self.ledger: RunningLedger | None = None
        self._data, self._seed = data, seed
        self._encode = partial(encode_chunk, template=template, tokenizer=tokenizer, data=data, max_length=max_length)

    def begin(self, path: Path | None, held_out: Iterable[LedgerRow]) -> None:
        """Enter rows in a ledger from the next iteration on: the trainer looks at the first row before that."""
        self.ledger = RunningLedger(path, held_out)

    def dataset(self) -> IterableDataset:
        """Return the rows as the trainer takes them: `input_ids`, `labels`, `row_index` and `source`."""
        # Not from_generator, which pickles the tokenizer and all to name a cache that a stream does not have.
        examples = ExamplesIterable(lambda: enumerate(self.rows()), {})
        return IterableDataset(examples, info=DatasetInfo(features=_FEATURES))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield every row, pass after pass, without end.

        Raises:
            DataError: a row is malformed and `data.malformed=stop`, the drop budget is broken, or no row is left.
        """
        position = 0
        for number in count():
            before = position
            for row in self._pass(number):
                index = position % REMEMBERED
                self.sources[index] = row.source
                ids, labels = row.input_ids.tolist(), row.labels.tolist()
                yield {"input_ids": ids, "labels": labels, "row_index": index, "source": row.source}
                position += 1
            if position == before:
                raise DataError("data: no row is left of a whole pass over data.path")

    def _pass(self, number: int) -> Iterator[_Row]:
        rows = self._encoded(self.ledger if number == 0 else None)
        return _shuffled(rows, random.Random(self._seed * 1_000_003 + number)) if self._data.shuffle else rows

    def _encoded(self, ledger: RunningLedger | None) -> Iterator[_Row]:
        for block in self._blocks():
            entries = Ledger()
            items, malformed = parse_block(block, CONVERSATIONS, "train", entries)
            stop_if_malformed(malformed, self._data.malformed)
            items = give_system(items, self._data.system, entries)
            outcomes = self._encode([item.item for item in items])
            kept = list(record_outcomes(items, outcomes, "train", entries))
            stop_if_malformed(entries.malformed(), self._data.malformed)
            if ledger is not None:
                by_source = {row.source: row for row in entries.rows}
                ledger.enter(by_source[row.source] for row in block.rows)
                ledger.notes.update(entries.notes)
                ledger.keys.update(entries.keys)
                ledger.check_budget(self._data.max_dropped)
            for source, encoding in kept:
                yield _Row(source, array("i", encoding.input_ids), array("i", labels_of(encoding)))

    def _blocks(self) -> Iterator[RowBlock]:
        """Read source rows in blocks that are encoded together."""
        left = self._data.limit
        for source in sources_of(self._data):
            rows = read_rows(source, limit=left, max_row_bytes=self._data.max_row_bytes)
            first = list(islice(rows, NUM_FIRST))
            format_ = find_format(source, first, CONVERSATIONS)
            rows = chain(first, rows)
            while chunk := list(islice(rows, CHUNK)):
                yield RowBlock(source, format_, chunk, [int(source.weight)] * len(chunk))
                left = None if left is None else left - len(chunk)


def _shuffled(rows: Iterable[_Row], draw: random.Random) -> Iterator[_Row]:
    """Yield rows in an order in which each was drawn from `BUFFER` of them."""
    waiting: list[_Row] = []
    for row in rows:
        if len(waiting) < BUFFER:
            waiting.append(row)
        else:
            at = draw.randrange(BUFFER)
            yield waiting[at]
            waiting[at] = row
    draw.shuffle(waiting)
    yield from waiting
