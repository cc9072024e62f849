"""Control tokens in message text: what a person typed must never become a token that only the template may write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.data.rows.conversation import Conversation, Message


@dataclass(frozen=True)
class Controls:
    """The tokens that only a template may write.

    Attributes:
        special: the special tokens of a tokenizer and the template's end tokens in a text, the longest first.
        written: these, and the plain added tokens that the template writes (`<think>`, `<tool_call>`): typed by a user
            or returned by a tool they would forge a thought or a call. The assistant may say them.
        ids: those of `written` that ordinary text never becomes (the unknown token is left out).
    """

    special: re.Pattern[str]
    written: re.Pattern[str]
    ids: frozenset[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, jinja: str, ends: Mapping[str, int]) -> Controls:
        """Collect them.

        Args:
            tokenizer: of the model.
            jinja: the chat template.
            ends: the template's end tokens with their ids.
        """
        added = {str(token): (i, token.special) for i, token in tokenizer.added_tokens_decoder.items()}
        special = {token: i for token, (i, is_special) in added.items() if is_special} | dict(ends)
        written = special | {token: i for token, (i, _) in added.items() if token.strip() and token in jinja}
        ids = frozenset(i for token, i in written.items() if token.strip())
        return cls(_any_of(special), _any_of(written), ids - {tokenizer.unk_token_id})

    def find(self, conversation: Conversation) -> str:
        """Describe the first one typed in a message or a tool; empty where there is none."""
        for message in conversation.messages:
            for text in _texts(_words(message)):
                if found := self._forbidden(message).search(text):
                    return f"{found[0]!r} in a message of the {message.role}"
        for text in _texts(conversation.tools):
            if found := self.written.search(text):
                return f"{found[0]!r} in a tool"
        return ""

    def mark(self, conversation: Conversation) -> tuple[Conversation, str]:
        """Put a character that occurs nowhere in the row before and after each one typed in it.

        Returns:
            The conversation, and that character: splitting a rendered text at it leaves the typed ones at odd indices.
        """
        words = [_words(message) for message in conversation.messages]
        used = {c for text in _texts([*words, conversation.tools]) for c in text}
        mark = next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)

        def marked(pattern: re.Pattern[str]) -> Callable[[str], str]:
            return lambda text: pattern.sub(lambda found: f"{mark}{found[0]}{mark}", text)

        messages = []
        for message in conversation.messages:
            change = marked(self._forbidden(message))
            texts: dict[str, Any] = {name: change(getattr(message, name)) for name in _TEXTS}
            texts["tool_calls"] = tuple(_changed(call, change) for call in message.tool_calls)
            messages.append(replace(message, **texts))
        tools = tuple(_changed(tool, marked(self.written)) for tool in conversation.tools)
        return replace(conversation, messages=tuple(messages), tools=tools), mark

    @staticmethod
    def is_lost(mark: str, text: str) -> bool:
        """Tell whether a rendered text has a mark escaped, as JSON or Python write it, or one without its other."""
        if not mark:
            return False
        forms = (json.dumps(mark)[1:-1], repr(mark)[1:-1])
        return text.count(mark) % 2 == 1 or any(form.replace("\\", "") in text.replace("\\", "") for form in forms)

    def _forbidden(self, message: Message) -> re.Pattern[str]:
        return self.special if message.role == "assistant" else self.written


_TEXTS = ("content", "input", "reasoning", "name")


def _words(message: Message) -> list[Any]:
    return [*(getattr(message, name) for name in _TEXTS), message.tool_calls]


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(str.strip, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


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
