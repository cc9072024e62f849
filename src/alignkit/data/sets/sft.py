"""From the `data` section to encoded rows of SFT: read, parse, hold out, encode, cut; every row is accounted for."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute
from transformers import PreTrainedTokenizerBase

from alignkit.choices import Overlength
from alignkit.config import DataConfig
from alignkit.data.batches.batching import IGNORED
from alignkit.data.encode.fewer_turns import CUT_TURNS, without_first_turns
from alignkit.data.encode.lengths import apply_length, needed_length
from alignkit.data.encode.masking import EncodeRules, Encoding, RowRefused, encode_rows
from alignkit.data.encode.templates import Template
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.row_kind import CONVERSATIONS, RowKind
from alignkit.data.sets.encode_sets import EncodeOutcome, encode_sets, record_sets, to_datasets
from alignkit.data.sets.items import parse_sets, read_sets, stop_if_malformed
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.loaded import EncodedData, EncodedSet, example_items
from alignkit.data.sets.split import hold_out
from alignkit.data.sets.system import give_system_to_sets


class SftSet(EncodedSet):
    """Encoded rows of one set, with the columns `input_ids` and `labels` (lists of int32, -100 where no loss).

    The columns `part` and `num_parts` say which part of its source row a row is.
    """

    filler: ClassVar = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED], "part": 1, "num_parts": 1}

    def part(self, index: int) -> tuple[int, int]:
        row = self.dataset[index]
        return row["part"], row["num_parts"]

    def in_parts(self) -> SftSet:
        """Return the rows that are one part of several."""
        several = pa.compute.greater(self.dataset.data.column("num_parts"), 1).to_pylist()
        return SftSet(self.dataset.select([index for index, is_one in enumerate(several) if is_one]))

    @property
    def lengths(self) -> list[int]:
        """Tokens in each row."""
        lengths: list[int] = pa.compute.list_value_length(self.dataset.data.column("input_ids")).to_pylist()
        return lengths

    @property
    def num_supervised(self) -> int:
        """Tokens that carry loss."""
        flat = pa.compute.list_flatten(self.dataset.data.column("labels"))
        return int(pa.compute.sum(pa.compute.not_equal(flat, IGNORED)).as_py() or 0)


class SftData(EncodedData[SftSet]):
    """Everything that was read for SFT."""

    set_type = SftSet


def load_sft(
    data: DataConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    num_examples: int = 0,
    kind: RowKind[Conversation] = CONVERSATIONS,
) -> SftData:
    """Read, parse, split, encode and cut every row the section names.

    Args:
        data: the section.
        template: bound to `tokenizer`.
        tokenizer: of the model.
        max_length: most tokens in a row.
        seed: of the evaluation split and of fractional source weights.
        num_examples: how many conversations to keep for samples.
        kind: `UNTRAINED` keeps the rows that their labels call bad.

    Raises:
        DataError: malformed rows under `data.malformed=stop`, a broken drop budget, or nothing left to train on.
    """
    ledger = Ledger(data.overlength)
    encode = partial(encode_chunk, template=template, tokenizer=tokenizer, data=data, max_length=max_length)
    rows = read_sets(data, kind, seed=seed)
    items, read = parse_sets(rows, kind, ledger, malformed=data.malformed)
    items = hold_out(items, fraction=data.eval_fraction, groups=data.eval_groups, seed=seed)
    items = give_system_to_sets(items, data.system, ledger)
    outcomes = encode_sets(items, encode, num_proc=data.num_proc)
    kept = record_sets(items, outcomes, ledger)
    sets = {name: SftSet(dataset) for name, dataset in to_datasets(kept, _columns).items()}
    stop_if_malformed(ledger.malformed(), data.malformed)
    ledger.check_budget(data.max_dropped)
    examples = [conversation for conversation in example_items(items) if not conversation.plain]
    return SftData(sets, ledger, read, examples[:num_examples])


def encode_chunk(
    conversations: list[Conversation],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    max_length: int,
) -> list[EncodeOutcome[Encoding]]:
    """Encode conversations with one call of the tokenizer, and fit each to `max_length`."""
    rules = EncodeRules.of(data)
    encode = partial(encode_rows, template=template, tokenizer=tokenizer, rules=rules)
    rows = encode(conversations)
    fit = partial(apply_length, max_length=max_length, policy=data.overlength)
    cut: dict[int, list[Encoding]] = {}
    if data.overlength is Overlength.keep_end:
        long = {
            index: (conversation, len(row))
            for index, (conversation, row) in enumerate(zip(conversations, rows, strict=True))
            if not isinstance(row, RowRefused) and any(needed_length(part) > max_length for part in row)
        }
        cut = without_first_turns(long, encode, rules.train_on, max_length)
    return [
        EncodeOutcome.left_out(row)
        if isinstance(row, RowRefused)
        else _fitted([fit(part) for part in cut.get(index, row)], CUT_TURNS if index in cut else "")
        for index, row in enumerate(rows)
    ]


def _fitted(parts: list[tuple[Encoding | None, str]], before: str) -> EncodeOutcome[Encoding]:
    """Give the parts of a row one fate: it is left out if one of them is; `before` says how it was cut before that."""
    reasons = {reason: kept is None for kept, reason in reversed(parts) if reason}
    dropped = next((reason for reason, is_dropped in reasons.items() if is_dropped), "")
    if dropped:
        return EncodeOutcome([], dropped)
    return EncodeOutcome([kept for kept, _ in parts if kept is not None], next(iter(reasons), before))


def labels_of(encoding: Encoding) -> list[int]:
    """Return the labels of a row; nothing predicts its first token."""
    return [IGNORED, *encoding.labels[1:]]


def _columns(encodings: list[Encoding]) -> dict[str, pa.Array]:
    lists = pa.list_(pa.int32())
    return {
        "input_ids": pa.array([e.input_ids for e in encodings], lists),
        "labels": pa.array([labels_of(e) for e in encodings], lists),
        "part": pa.array([e.part[0] for e in encodings], pa.int32()),
        "num_parts": pa.array([e.part[1] for e in encodings], pa.int32()),
    }
