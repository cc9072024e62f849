"""What the policy would be asked: the prompts of PPO, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.prompts import Prompt
from alignkit.data.views.supervised import Span, spans_of, truncated

_ANSWER = Span("…", True, False)  # shows whether a prompt ends in a space or a line break


@dataclass(frozen=True)
class PromptRowView:
    """A prompt; the loss sees what the policy answers."""

    source: str
    prompt_ids: list[int]
    asked: str

    @property
    def size(self) -> str:
        """How long it is, in words."""
        return f"{len(self.prompt_ids)} tokens"

    def parts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[Span]]]:
        """What to show: the prompt as the policy is fed it."""
        return [("", [*spans_of(self.prompt_ids, [False] * len(self.prompt_ids), tokenizer), _ANSWER])]

    def as_json(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {
            "source": self.source,
            "prompt_ids": self.prompt_ids,
            "prompt_text": tokenizer.decode(self.prompt_ids),
            "asked": self.asked,
        }


@dataclass(frozen=True)
class PromptView:
    """What a stage would ask its policy.

    Attributes:
        title: stage and run.
        sets: `train`, and `eval` where prompts are held out.
        ledger: what became of every source row.
        tokenizer: of the policy.
        facts: one line each: formats, template, how often a prompt is asked.
        compared: of a JSON row, what `--assert` compares: a key, its text's key, and what it is.
    """

    title: str
    sets: dict[str, list[Prompt]]
    ledger: Ledger
    tokenizer: PreTrainedTokenizerBase
    facts: Sequence[str]

    legend: ClassVar = (
        Span("the policy is asked this, and answers from here on: ", False, False),
        _ANSWER,
        Span("; ", False, False),
        Span("special", False, True),
    )
    compared: ClassVar = (("prompt_ids", "prompt_text", "prompt"),)

    def rows(self, name: str = "train", num_rows: int | None = None) -> Iterator[PromptRowView]:
        """The first prompts of a set, in the order of the data."""
        for prompt in islice(self.sets[name], num_rows):
            yield PromptRowView(prompt.source, prompt.ids, prompt.text)

    def lengths(self) -> dict[str, list[int]]:
        """Tokens in each prompt of every set, by what is counted."""
        return {"a prompt": [len(prompt.ids) for prompts in self.sets.values() for prompt in prompts]}

    def figures(self) -> list[str]:
        """What else to show, one line each."""
        return [*self.facts, truncated(self.ledger)]
