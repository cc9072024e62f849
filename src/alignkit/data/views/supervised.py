"""What a stage would train on, read back from the collated batches of the very collator that trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignkit.data.batches.batching import IGNORED, rows_of
from alignkit.data.batches.pair_batching import Side, pairs_of
from alignkit.data.sets.lint import Lint
from alignkit.data.sets.loaded import EncodedSet
from alignkit.data.sets.pairs import PairSet
from alignkit.data.sets.sft import SftSet
from alignkit.data.views.view import RowView, Span, View, spans_of


@dataclass(frozen=True)
class SftRowView(RowView):
    """A row as it came back from its batch."""

    input_ids: list[int]
    labels: list[int]

    @property
    def size(self) -> str:
        num_supervised = sum(label != IGNORED for label in self.labels)
        return f"{len(self.input_ids)} tokens, {num_supervised} supervised"

    def parts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[Span]]]:
        supervised = [label != IGNORED for label in self.labels]
        return [("", spans_of(self.input_ids, supervised, tokenizer, self.cuts.get("input_ids")))]

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
class PairRowView(RowView):
    """A pair as it came back from its batch; the loss sees the two responses, or what is left of them."""

    prompt_ids: list[int]
    chosen: Side
    rejected: Side

    @property
    def size(self) -> str:
        num_chosen, num_rejected = len(self.chosen[0]), len(self.rejected[0])
        return f"{len(self.prompt_ids)} tokens of prompt, {num_chosen} chosen, {num_rejected} rejected"

    def parts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[Span]]]:
        prompt = (self.prompt_ids, [IGNORED] * len(self.prompt_ids))
        parts = (("", prompt), ("chosen", self.chosen), ("rejected", self.rejected))
        return [
            (
                name,
                spans_of(
                    ids, [label != IGNORED for label in labels], tokenizer, self.cuts.get(f"{name or 'prompt'}_ids")
                ),
            )
            for name, (ids, labels) in parts
        ]

    def as_json(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        (chosen_ids, chosen_labels), (rejected_ids, rejected_labels) = self.chosen, self.rejected
        return {
            "source": self.source,
            "prompt_ids": self.prompt_ids,
            "chosen_ids": chosen_ids,
            "rejected_ids": rejected_ids,
            "chosen_labels": chosen_labels,
            "rejected_labels": rejected_labels,
            "prompt_text": tokenizer.decode(self.prompt_ids),
            "chosen_text": tokenizer.decode(chosen_ids),
            "rejected_text": tokenizer.decode(rejected_ids),
        }


@dataclass(frozen=True)
class BatchView(View):
    """What a stage would train on.

    Attributes:
        sets: encoded rows or pairs.
        collator: the very one that trains.
        batch_size: rows it is given at once.
    """

    sets: Mapping[str, EncodedSet]
    collator: Callable[[list[Any]], Mapping[str, Tensor]]
    batch_size: int

    legend = (
        Span("the loss sees ", False, False),
        Span("this", True, False),
        Span(", never this; ", False, False),
        Span("special", False, True),
    )

    @abstractmethod
    def rows_in(self, batch: Mapping[str, Tensor], sources: list[str]) -> Iterable[tuple[int, RowView]]:
        """Read a batch back: the number of each row, and the row; `sources` are those of the set."""

    def rows(self, name: str = "train", num_rows: int | None = None) -> Iterator[RowView]:
        of_set = self.sets[name]
        dataset, sources = of_set.dataset, of_set.sources
        num_shown = len(dataset) if num_rows is None else min(num_rows, len(dataset))
        for start in range(0, num_shown, self.batch_size):
            batch = self.collator([dataset[i] for i in range(start, min(start + self.batch_size, num_shown))])
            for index, row in sorted(self.rows_in(batch, sources), key=lambda numbered: numbered[0]):
                kwargs = {**self.template_kwargs, **of_set.template_kwargs(index)}
                yield replace(row, part=of_set.part(index), template_kwargs=kwargs, cuts=of_set.cuts(index))


@dataclass(frozen=True)
class SftView(BatchView):
    """What SFT would train on."""

    sets: Mapping[str, SftSet]

    compared = (("input_ids", "text", "tokens"), ("labels", "supervised_text", "mask"))

    def rows_in(self, batch: Mapping[str, Tensor], sources: list[str]) -> Iterable[tuple[int, RowView]]:
        return ((i, SftRowView(sources[i], ids, labels)) for i, ids, labels in rows_of(batch))

    def lengths(self) -> dict[str, list[int]]:
        return {"a row": [length for rows in self.sets.values() for length in rows.lengths]}

    def figures(self) -> list[str]:
        *facts, truncated = super().figures()
        num_supervised = sum(rows.num_supervised for rows in self.sets.values())
        share = num_supervised / max(sum(self.lengths()["a row"]), 1)
        return [*facts, f"{share:.1%} of the tokens supervised, {truncated}"]


@dataclass(frozen=True)
class PairView(BatchView):
    """What a stage that compares would train on.

    Attributes:
        lint: what is odd about the pairs.
    """

    sets: Mapping[str, PairSet]
    lint: Lint

    compared = (
        ("prompt_ids", "prompt_text", "prompt"),
        ("chosen_ids", "chosen_text", "chosen side"),
        ("rejected_ids", "rejected_text", "rejected side"),
        ("chosen_labels", "chosen_text", "mask of the chosen side"),
        ("rejected_labels", "rejected_text", "mask of the rejected side"),
    )

    def rows_in(self, batch: Mapping[str, Tensor], sources: list[str]) -> Iterable[tuple[int, RowView]]:
        pairs = pairs_of(batch)
        return ((i, PairRowView(sources[i], prompt, chosen, rejected)) for i, prompt, chosen, rejected in pairs)

    def lengths(self) -> dict[str, list[int]]:
        sides = zip(*(pairs.side_lengths() for pairs in self.sets.values()), strict=True)
        names = ("a prompt", "a chosen response", "a rejected response")
        return {name: [length for part in parts for length in part] for name, parts in zip(names, sides, strict=True)}

    def figures(self) -> list[str]:
        *facts, truncated = super().figures()
        prompt, chosen, rejected = map(sum, self.lengths().values())
        num_masked = sum(sum(masked) for pairs in self.sets.values() for masked in pairs.num_masked())
        share = (chosen + rejected - num_masked) / max(prompt + chosen + rejected, 1)
        return [*facts, f"{share:.1%} of the tokens supervised, {truncated}", *self.lint.lines()]
