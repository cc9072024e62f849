"""A message's content as a list of parts: text, reasoning and calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignkit.data.rows.keys import is_media, refusal
from alignkit.data.rows.tool_calls import Call, read_calls
from alignkit.data.rows.values import RowError, checked_text, describe_type, given, is_nothing
from alignkit.errors import did_you_mean

# In the order in which a template renders them; another order would be lost.
_ORDER = {"reasoning": 0, "thinking": 0, "text": 1, "input_text": 1, "output_text": 1, "tool_call": 2}
PART_KEYS = frozenset({"type", "value", "text", "name", "arguments", "id", *_ORDER})


@dataclass(frozen=True)
class Content:
    """What the parts of a message add up to.

    Attributes:
        text: the parts of the type text, joined as they are.
        reasoning: the same of those that are reasoning.
        calls: of tools.
    """

    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


def read_parts(parts: list[Any]) -> Content:
    """Read content parts, each `{type, value}`, or with its value as `text` or under its type's own name.

    Raises:
        RowError: a part of another type than text, reasoning and tool_call, or one in an order that would be lost.
    """
    texts: dict[int, list[str]] = {0: [], 1: []}
    calls: list[Call] = []
    last = "reasoning"
    for part in parts:
        kind, value = _part(part)
        if value is None:
            continue
        if _ORDER[kind] < _ORDER[last]:
            raise RowError(
                f"a part of type '{kind}' follows one of type '{last}', and templates write reasoning, words and calls "
                "in this order: sort the parts, or make several messages of them"
            )
        if _ORDER[kind] != _ORDER["text"] or str(value).strip():  # a line break before a thought is no words
            last = kind
        if kind == "tool_call":
            calls += read_calls(value, kind)
        else:
            texts[_ORDER[kind]].append(checked_text(value, kind))
    return Content("".join(texts[1]), "".join(texts[0]), tuple(calls))


def _part(part: Any) -> tuple[str, Any]:
    if not isinstance(part, dict):
        raise RowError(f"a part of a message is {describe_type(part)} where an object belongs")
    kind = checked_text(part.get("type"), "type")
    for name in [kind, *(key for key, value in part.items() if not is_nothing(value))]:
        if is_media(name):
            raise RowError(refusal(name))
    if kind not in _ORDER:
        raise RowError(f"a part of a message is of type '{kind}'; one of {', '.join(_ORDER)}")
    if kind == "tool_call" and "name" in part:
        return kind, {key: value for key, value in part.items() if key != "type"}
    names = (kind, "value", "text")
    if not any(name in part for name in names):
        raise RowError(f"a part of type '{kind}' has no '{kind}'{did_you_mean(kind, map(str, part))}")
    return kind, given(part, names)
