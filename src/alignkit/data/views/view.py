"""What every view has in common: rows as text in spans, and the figures below them."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from alignkit.data.encode.templates import Template
from alignkit.data.sets.ledger import Ledger
from alignkit.errors import DataError

CUTS = {
    "cut_turns": "cut: its first turns are left out",
    "cut_start": "cut: the start of its prompt is left out",
    "cut_end": "cut: the end of its response is left out",
}

_TAG = re.compile(r"[<\[]\S+[>\]]")


@dataclass(frozen=True)
class Span:
    """A run of tokens of one kind: supervised or not, and either plain text or one special token."""

    text: str
    supervised: bool
    special: bool


CUT_HERE = Span("✂ cut here", False, True)


def spans_of(
    ids: Sequence[int], supervised: Sequence[bool], tokenizer: PreTrainedTokenizerBase, cut: int | None = None
) -> list[Span]:
    """Decode tokens into spans, divided where supervision starts or stops and around every special token.

    Args:
        ids: the tokens.
        supervised: which of them carry loss.
        tokenizer: of the model.
        cut: the index of the token before which others were left out; None where none were.
    """
    special_ids, run = _shown_alone(tokenizer), []
    spans = [CUT_HERE] if cut == 0 else []
    for index, token in enumerate(ids):
        run.append(token)
        special, last = token in special_ids, index + 1 == len(ids)
        cuts = index + 1 == cut
        if last or special or cuts or ids[index + 1] in special_ids or supervised[index + 1] != supervised[index]:
            # Runs, not tokens, are decoded: a character may be made of several byte tokens.
            spans.append(Span(str(tokenizer.decode(run)), supervised[index], special))
            spans += [CUT_HERE] if cuts else []
            run = []
    return spans


def _shown_alone(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens, and the tags among those that were added as plain ones: `<think>`, `<tool_call>`."""
    tags = [i for i, token in tokenizer.added_tokens_decoder.items() if _TAG.fullmatch(str(token))]
    return {*tokenizer.all_special_ids, *tags}


def title(stage: str, job: Any, template: Template) -> str:
    """Return the first line: the stage, the run, the template and its arguments."""
    kwargs = f" with {json.dumps(job.template.kwargs, ensure_ascii=False)}" if job.template.kwargs else ""
    return f"{stage} {job.name}, template {template.name}{kwargs}"


@dataclass(frozen=True)
class RowView(ABC):
    """A row as a stage gets it.

    Attributes:
        source: `file:N`.
        part: which part of its source row it is, and of how many.
        template_kwargs: the arguments that its template had, the row's own among them.
        cuts: where tokens were left out: the index of the token that now follows, by the name of the list of tokens.
    """

    source: str
    part: tuple[int, int] = field(default=(1, 1), kw_only=True)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    cuts: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    @property
    def place(self) -> str:
        """Where it comes from, in words."""
        number, count = self.part
        return f"{self.source} part {number} of {count}" if count > 1 else self.source

    def rendered(self) -> dict[str, Any]:
        """Return what `--json` prints about how the row was rendered and cut."""
        number, count = self.part
        kwargs, cuts = dict(self.template_kwargs), dict(self.cuts)
        return {"part": number, "num_parts": count, "template_kwargs": kwargs, "cuts": cuts}

    @property
    @abstractmethod
    def size(self) -> str:
        """How long it is, in words."""

    @abstractmethod
    def parts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[Span]]]:
        """Return what to show: the name of each part, empty where there is only one, and its text."""

    @abstractmethod
    def as_json(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return what `--json` prints: the source, token ids, and their text."""


@dataclass(frozen=True)
class View(ABC):
    """What a stage would learn from.

    Attributes:
        title: stage and run.
        sets: `train` and the held-out ones.
        ledger: what became of every source row.
        tokenizer: of the model.
        facts: one line each: formats, template, batching.
        max_dropped: the drop budget of a run.
        template_kwargs: the arguments of the template in every row that has none of its own.
        legend: what the colors say, in the colors themselves.
        compared: what `--assert` compares of a JSON row: a key, the key of its text, and what it is.
    """

    title: str
    sets: Mapping[str, Any]
    ledger: Ledger
    tokenizer: PreTrainedTokenizerBase
    facts: Sequence[str]
    max_dropped: float = field(default=1.0, kw_only=True)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    legend: ClassVar[tuple[Span, ...]]
    compared: ClassVar[tuple[tuple[str, str, str], ...]]

    @abstractmethod
    def rows(self, name: str = "train", num_rows: int | None = None) -> Iterator[RowView]:
        """Yield the first rows of a set, in the order of the data; all of them where `num_rows` is None."""

    @abstractmethod
    def lengths(self) -> dict[str, list[int]]:
        """Count the tokens in each row of every set, by what is counted."""

    def check_budget(self) -> None:
        """Refuse what a run would refuse once it has read the data.

        Raises:
            DataError: one line for each set that is over the drop budget.
        """
        try:
            self.ledger.check_budget(self.max_dropped)
        except DataError as error:
            raise DataError(*(f"a run stops here: {problem}" for problem in error.problems)) from error

    def cuts(self) -> dict[str, str]:
        """Return, by source, how a row was cut, in words."""
        cut = [(row.source, row.reason.partition(",")[0]) for row in self.ledger.rows if row.fate == "truncated"]
        return {source: f", {CUTS[reason]}" for source, reason in cut}

    def figures(self) -> list[str]:
        """Return what else to show, one line each: the facts, and how many rows were cut."""
        counts = Counter(row.fate for row in self.ledger.rows)
        share = counts["truncated"] / max(counts["truncated"] + counts["kept"], 1)
        return [*self.facts, f"{share:.1%} of the kept rows truncated"]
