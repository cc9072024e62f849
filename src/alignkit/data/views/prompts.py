"""What the policy would be asked: the prompts of PPO, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.data.sets.prompts import Prompt
from alignkit.data.views.view import RowView, Span, View, spans_of

_ANSWER = Span("…", True, False)  # shows whether a prompt ends in a space or a line break


@dataclass(frozen=True)
class PromptRowView(RowView):
    """A prompt; the loss sees what the policy answers."""

    prompt_ids: list[int]
    question: str

    @property
    def size(self) -> str:
        return f"{len(self.prompt_ids)} tokens"

    def parts(self, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[Span]]]:
        spans = spans_of(self.prompt_ids, [False] * len(self.prompt_ids), tokenizer, self.cuts.get("prompt_ids"))
        return [("", [*spans, _ANSWER])]

    def as_json(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {
            "source": self.source,
            "prompt_ids": self.prompt_ids,
            "prompt_text": tokenizer.decode(self.prompt_ids),
            "asked": self.question,
        }


@dataclass(frozen=True)
class PromptView(View):
    """What a stage would ask its policy."""

    sets: Mapping[str, list[Prompt]]

    legend = (
        Span("the policy is asked this, and answers from here on: ", False, False),
        _ANSWER,
        Span("; ", False, False),
        Span("special", False, True),
    )
    compared = (("prompt_ids", "prompt_text", "prompt"),)

    def rows(self, name: str = "train", num_rows: int | None = None) -> Iterator[RowView]:
        for prompt in islice(self.sets[name], num_rows):
            kwargs = {**self.template_kwargs, **prompt.template_kwargs}
            kwargs.pop("documents", None)
            yield PromptRowView(prompt.source, prompt.ids, prompt.text, template_kwargs=kwargs, cuts=prompt.cuts)

    def lengths(self) -> dict[str, list[int]]:
        return {"a prompt": [len(prompt.ids) for prompts in self.sets.values() for prompt in prompts]}
