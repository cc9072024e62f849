"""One representation for every row: a conversation of messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: one of `ROLES`.
        content: the text, exactly as in the data (never stripped).
        input: the context of an instruction (Alpaca's `input` column); only user turns have one.
        train: whether the loss sees this turn; None leaves it to `data.train_on`.
        tool_calls: calls of an assistant turn in OpenAI's shape, `{type, id?, function: {name, arguments}}`; the
            arguments are an object, or the JSON text that the data holds.
        reasoning: what the assistant thought before its words and calls.
        name: of the tool that answers, or of who speaks.
        tool_call_id: the call that a tool's result answers.
    """

    role: str
    content: str
    input: str = ""
    train: bool | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    reasoning: str = ""
    name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order; `text` rows (plain language modelling) are one assistant message without a template.

    Attributes:
        messages: at least one.
        plain: the row is plain text: no template is applied, every token is trained.
        tools: the functions that the assistant may call, in OpenAI's shape `{type, function: {name, …}}`.
        template_kwargs: the row's own arguments of the template, over `template.kwargs`; `documents` is one.
        notes: what the reading of the row counted that changes no fate.
    """

    messages: tuple[Message, ...]
    plain: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def with_answer(self, answer: Message) -> Conversation:
        """Return the conversation with one more message."""
        return replace(self, messages=(*self.messages, answer))

    def with_system(self, words: str) -> Conversation:
        """Return the conversation with a system message in front, unless it has one or is plain text."""
        if self.plain or self.messages[0].role in ("system", "developer"):
            return self
        return replace(self, messages=(Message("system", words), *self.messages))

    def prompt(self) -> Conversation:
        """Return what a model is asked: everything before the last assistant turn."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return replace(self, messages=self.messages[:last])

    def question(self) -> str:
        """Return the content of the last message, with its input below; of plain text, the text."""
        last = self.messages[-1]
        return f"{last.content}\n{last.input}" if last.input else last.content

    def prompt_key(self) -> str:
        """Return what two rows must share to count as the same prompt.

        Tools are no part of it: one question under other tools shares its answers, so it stays on one side of a split.
        """
        return self.messages[0].content if self.plain else _key(self.prompt().messages)

    def beginning_key(self) -> str:
        """Return what two rows must share to count as one conversation: the system message and the first user turn."""
        if self.plain:
            return self.messages[0].content
        first = next((i for i, message in enumerate(self.messages) if message.role == "user"), 0)
        return _key(self.messages[: first + 1])

    def exchange_chains(self) -> list[list[str]]:
        """Return, for each assistant turn, what was said since the one before, without the system, and the answer."""
        ends = [number + 1 for number, message in enumerate(self.messages) if message.role == "assistant"]
        turns = [self.messages[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        without_system = (tuple(m for m in said if m.role not in ("system", "developer")) for said in turns)
        return [[_key(said) for said in without_system if len(said) > 1]]


def _key(messages: tuple[Message, ...]) -> str:
    calls = [json.dumps(m.tool_calls, sort_keys=True) if m.tool_calls else "" for m in messages]
    return "\x1e".join(f"{m.role}\x1f{m.content}\x1f{m.input}{call}" for m, call in zip(messages, calls, strict=True))
