"""One representation for every row: a conversation of messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: one of `ROLES`.
        content: the text, exactly as in the data (never stripped).
        input: the context of an instruction (Alpaca's `input` column); only user turns have one.
        train: whether the loss sees this turn; None leaves it to `data.train_on`.
        tool_calls: structured calls of an assistant turn in OpenAI's shape, passed to the template as they are.
    """

    role: str
    content: str
    input: str = ""
    train: bool | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order; `text` rows (plain language modelling) are one assistant message without a template.

    Attributes:
        messages: at least one.
        plain: the row is plain text: no template is applied, every token is trained.
    """

    messages: tuple[Message, ...]
    plain: bool = False

    def prompt(self) -> Conversation:
        """Return what a model is asked: everything before the last assistant turn."""
        last = max((i for i, m in enumerate(self.messages) if m.role == "assistant"), default=len(self.messages))
        return Conversation(self.messages[:last])

    def question(self) -> str:
        """Return the content of the last message, with its input below; of plain text, the text."""
        last = self.messages[-1]
        return f"{last.content}\n{last.input}" if last.input else last.content

    def prompt_key(self) -> str:
        """Return what two rows must share to count as the same prompt."""
        return self.messages[0].content if self.plain else _key(self.prompt().messages)

    def beginning_key(self) -> str:
        """Return what two rows must share to count as one conversation: the system message and the first user turn."""
        if self.plain:
            return self.messages[0].content
        first = next((i for i, message in enumerate(self.messages) if message.role == "user"), 0)
        return _key(self.messages[: first + 1])


def _key(messages: tuple[Message, ...]) -> str:
    return "\x1e".join(f"{m.role}\x1f{m.content}\x1f{m.input}" for m in messages)
