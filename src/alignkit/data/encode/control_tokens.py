"""Control tokens in message text: what a person typed must never become a token that only the template may write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.data.rows.conversation import Message


@dataclass(frozen=True)
class Controls:
    """The special tokens of a tokenizer and the template's end token.

    Attributes:
        pattern: any of them in a text, the longest first.
        ids: those of them that ordinary text never becomes (the unknown token is left out).
    """

    pattern: re.Pattern[str]
    ids: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, end_token: str, end_id: int) -> Controls:
        special = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ids = {token: i for token, i in {**special, end_token: end_id}.items() if token.strip()}
        pattern = "|".join(re.escape(token) for token in sorted(ids, key=len, reverse=True))
        return cls(re.compile(pattern or "(?!)"), frozenset(ids.values()) - {tokenizer.unk_token_id})

    def find(self, messages: Sequence[Message]) -> str:
        """Describe the first one typed in a message; empty where there is none."""
        for message in messages:
            for text in _texts([message.content, message.input, message.tool_calls]):
                if found := self.pattern.search(text):
                    return f"{found[0]!r} in a message of the {message.role}"
        return ""

    def mark(self, messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
        """Put a character that occurs nowhere in the messages before and after each one typed in them.

        Returns:
            The messages, and that character: splitting a rendered text at it leaves the typed ones at odd indices.
        """
        used = {c for m in messages for text in _texts([m.content, m.input, m.tool_calls]) for c in text}
        mark = next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)

        def marked(text: str) -> str:
            return self.pattern.sub(lambda found: f"{mark}{found[0]}{mark}", text)

        return tuple(
            replace(
                message,
                content=marked(message.content),
                input=marked(message.input),
                tool_calls=tuple(_changed(call, marked) for call in message.tool_calls),
            )
            for message in messages
        ), mark


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_changed(key, change): _changed(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(item, change) for item in value]
    return value
