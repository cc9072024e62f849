"""Calls and results that a data set typed as text: `<tool_call>{…}</tool_call>`, `<tool_response>…</tool_response>`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from alignkit.data.rows.conversation import Message
from alignkit.data.rows.tool_calls import read_calls

_CALL = r"<tool_call>\s*(.*?)\s*</tool_call>"
_CALLS_AT_THE_END = re.compile(rf"(?:\s*{_CALL})+\s*\Z", re.DOTALL)
_RESULT = r"<tool_response>\s*(.*?)\s*</tool_response>"
_RESULTS_ALONE = re.compile(rf"(?:\s*{_RESULT})+\s*\Z", re.DOTALL)


def untyped(messages: Sequence[Message]) -> list[Message]:
    """Read what is typed as calls and results, in a conversation that has a tool's result, so that these are calls.

    Raises:
        RowError: what stands between the tags is no call.
    """
    if not any(message.role == "tool" for message in messages):
        return [*messages]
    return [read for message in messages for read in _read(message)]


def _read(message: Message) -> Iterator[Message]:
    if message.role == "tool" and _RESULTS_ALONE.match(message.content):
        yield from (replace(message, content=text) for text in re.findall(_RESULT, message.content, re.DOTALL))
    elif message.role == "assistant" and not message.tool_calls and (said := _said(message.content)) is not None:
        texts = re.findall(_CALL, message.content[len(said) :], re.DOTALL)
        calls = tuple(call for text in texts for call in read_calls(text, "<tool_call>"))
        yield replace(message, content=said, tool_calls=calls)
    else:
        yield message


def _said(content: str) -> str | None:
    """The words before the calls that a text ends in; None where it ends in none."""
    start = content.find("<tool_call>")
    said = content[: max(start, 0)].rstrip()
    return said if start >= 0 and _CALLS_AT_THE_END.match(content, len(said)) else None
