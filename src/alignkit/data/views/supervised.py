"""What a stage would train on, read back from the collated batches of the very collator that trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignkit.data.batches.batching import IGNORED, Collator, rows_of
from alignkit.data.batches.pair_batching import PairCollator, pairs_of
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.lint import Lint
from alignkit.data.sets.pairs import PairSet
from alignkit.data.sets.sft import SftSet


@dataclass(frozen=True)
class Span:
    """A run of tokens of one kind: supervised or not, and either plain text or one special token."""

    text: str
    supervised: bool
    special: bool


def spans_of(ids: Sequence[int], supervised: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """The text of tokens, cut where supervision starts or stops and around every special token."""
    special_ids, spans, run = set(tokenizer.all_special_ids), [], []
    for at, token in enumerate(ids):
        run.append(token)
        special, last = token in special_ids, at + 1 == len(ids)
        if last or special or ids[at + 1] in special_ids or supervised[at + 1] != supervised[at]:
            # Runs, not tokens, are decoded: a character may be made of several byte tokens.
            spans.append(Span(str(tokenizer.decode(run)), supervised[at], special))
            run = []
    return spans


# What the colours say, in the colours themselves.
_SUPERVISION = (
    Span("the loss sees ", False, False),
    Span("this", True, False),
    Span(", never this; ", False, False),
    Span("special", False, True),
)


@dataclass(frozen=True)
class RowView:
    """A row as it came back from its batch."""

    source: str
    input_ids: list[int]
    labels: list[int]

    @property
    def num_supervised(self) -> int:
        return sum(label != IGNORED for label in self.labels)

    @property
    def size(self) -> str:
        """How long it is, in words."""
        return f"{len(self.input_ids)} tokens, {self.num_supervised} supervised"

    def spans(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        """The row's text in spans of one kind."""
        return spans_of(self.input_ids, [label != IGNORED for label in self.labels], tokenizer)

    def parts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[Span]]]:
        """What to show: each part's name, where it has one, and its text."""
        return [("", self.spans(tokenizer))]

    def as_json(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        supervised = [token for token, label in zip(self.input_ids, self.labels, strict=True) if label != IGNORED]
        return {
            "source": self.source,
            "input_ids": self.input_ids,
            "labels": self.labels,
            "text": tokenizer.decode(self.input_ids),
            "supervised_text": tokenizer.decode(supervised),
        }


@dataclass(frozen=True)
class PairRowView:
    """A pair as it came back from its batch; the loss sees the two responses."""

    source: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def size(self) -> str:
        """How long it is, in words."""
        return (
            f"{len(self.prompt_ids)} tokens of prompt, {len(self.chosen_ids)} chosen, {len(self.rejected_ids)} rejected"
        )

    def parts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[Span]]]:
        """What to show: the prompt once, and both sides by name."""
        parts = (("", self.prompt_ids), ("chosen", self.chosen_ids), ("rejected", self.rejected_ids))
        return [(name, spans_of(ids, [bool(name)] * len(ids), tokenizer)) for name, ids in parts]

    def as_json(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {
            "source": self.source,
            "prompt_ids": self.prompt_ids,
            "chosen_ids": self.chosen_ids,
            "rejected_ids": self.rejected_ids,
            "prompt_text": tokenizer.decode(self.prompt_ids),
            "chosen_text": tokenizer.decode(self.chosen_ids),
            "rejected_text": tokenizer.decode(self.rejected_ids),
        }


Row = TypeVar("Row")


def _read_back(
    dataset: Dataset,
    num_rows: int | None,
    batch_size: int,
    collator: Callable[[list[Any]], Mapping[str, Tensor]],
    views: Callable[[Mapping[str, Tensor]], dict[int, Row]],
) -> Iterator[Row]:
    """The first rows of a set, in the order of the data, out of batches made of them."""
    wanted = len(dataset) if num_rows is None else min(num_rows, len(dataset))
    for start in range(0, wanted, batch_size):
        found = views(collator([dataset[i] for i in range(start, min(start + batch_size, wanted))]))
        yield from (found[i] for i in sorted(found))


def truncated(ledger: Ledger) -> str:
    """The share of the kept rows that were cut, in words."""
    counts = Counter(row.fate for row in ledger.rows)
    share = counts["truncated"] / max(counts["truncated"] + counts["kept"], 1)
    return f"{share:.1%} of the kept rows truncated"


@dataclass(frozen=True)
class View:
    """What a stage would train on.

    Attributes:
        title: stage and run.
        sets: `train` and the held-out ones.
        ledger: what became of every source row.
        collator: the very one that trains.
        batch_size: rows it is given at once.
        tokenizer: of the model.
        facts: one line each: formats, template, batching.
        compared: of a JSON row, what `--assert` compares: a key, its text's key, and what it is.
    """

    title: str
    sets: dict[str, SftSet]
    ledger: Ledger
    collator: Collator
    batch_size: int
    tokenizer: PreTrainedTokenizerBase
    facts: Sequence[str]

    legend: ClassVar = _SUPERVISION
    compared: ClassVar = (("input_ids", "text", "tokens"), ("labels", "supervised_text", "mask"))

    def rows(self, name: str = "train", num_rows: int | None = None) -> Iterator[RowView]:
        """The first rows of a set, in the order of the data, read back from batches."""
        sources = self.sets[name].sources

        def views(batch: Mapping[str, Tensor]) -> dict[int, RowView]:
            return {i: RowView(sources[i], ids, labels) for i, ids, labels in rows_of(batch)}

        return _read_back(self.sets[name].dataset, num_rows, self.batch_size, self.collator, views)

    def lengths(self) -> dict[str, list[int]]:
        """Tokens in each row of every set, by what is counted."""
        return {"a row": [length for rows in self.sets.values() for length in rows.lengths]}

    def figures(self) -> list[str]:
        """What else to show, one line each: the facts, and how much is supervised and was cut."""
        supervised = sum(rows.num_supervised for rows in self.sets.values())
        share = supervised / max(sum(self.lengths()["a row"]), 1)
        return [*self.facts, f"{share:.1%} of the tokens supervised, {truncated(self.ledger)}"]


@dataclass(frozen=True)
class PairView:
    """What a stage that compares would train on.

    Attributes:
        title: stage and run.
        sets: `train` and the held-out ones.
        ledger: what became of every source row.
        lint: what is odd about the pairs.
        collator: the very one that trains.
        batch_size: pairs it is given at once.
        tokenizer: of the model.
        facts: one line each: formats, template, batching.
        compared: of a JSON row, what `--assert` compares: a key, its text's key, and what it is.
    """

    title: str
    sets: dict[str, PairSet]
    ledger: Ledger
    lint: Lint
    collator: PairCollator
    batch_size: int
    tokenizer: PreTrainedTokenizerBase
    facts: Sequence[str]

    legend: ClassVar = _SUPERVISION
    compared: ClassVar = (
        ("prompt_ids", "prompt_text", "prompt"),
        ("chosen_ids", "chosen_text", "chosen side"),
        ("rejected_ids", "rejected_text", "rejected side"),
    )

    def rows(self, name: str = "train", num_rows: int | None = None) -> Iterator[PairRowView]:
        """The first pairs of a set, in the order of the data, read back from batches."""
        sources = self.sets[name].sources

        def views(batch: Mapping[str, Tensor]) -> dict[int, PairRowView]:
            return {i: PairRowView(sources[i], *ids) for i, *ids in pairs_of(batch)}

        return _read_back(self.sets[name].dataset, num_rows, self.batch_size, self.collator, views)

    def lengths(self) -> dict[str, list[int]]:
        """Tokens in each pair of every set, by what is counted."""
        sides = zip(*(pairs.side_lengths() for pairs in self.sets.values()), strict=True)
        names = ("a prompt", "a chosen response", "a rejected response")
        return {name: [length for part in parts for length in part] for name, parts in zip(names, sides, strict=True)}

    def figures(self) -> list[str]:
        """What else to show, one line each: the facts, how much is supervised and was cut, and the lint."""
        prompt, chosen, rejected = map(sum, self.lengths().values())
        share = (chosen + rejected) / max(prompt + chosen + rejected, 1)
        return [
            *self.facts,
            f"{share:.1%} of the tokens supervised, {truncated(self.ledger)}",
            *self.lint.lines(),
        ]
