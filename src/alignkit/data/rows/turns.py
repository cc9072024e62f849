"""Chat turns: from messages as data sets spell them to messages in an order that a template can render."""

from __future__ import annotations

import json
from typing import Any

from alignkit.data.rows.conversation import Message
from alignkit.errors import DataError, did_you_mean

LONE_SURROGATE = "half a character (a lone surrogate)"

OPENAI_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# A function call is the assistant's own words, so it keeps its text as it is and every template can show it.
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
FOLLOWERS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}

_MISSING = object()


class RowError(DataError):
    """One row is wrong. The text is a short reason, the same for the same mistake so that they can be counted."""


class RowUnusable(RowError):
    """One row can be read but not used: it is dropped with this reason and counted, never malformed."""


def messages_from(role: str, value: Any, name: str, *, response: bool = True) -> list[Message]:
    """Read a field that holds one text, said by `role`, or a list of messages as in `read_turns`."""
    if isinstance(value, list):
        return read_turns(value, name, response=response)
    return [Message(role, full_text(value, name))]


def read_turns(value: Any, name: str, *, response: bool = True) -> list[Message]:
    """Read a list of turns.

    Args:
        value: the list, each item in OpenAI's spelling (`role`, `content`) or ShareGPT's (`from`, `value`).
        name: the column it came from.
        response: False leaves off a last assistant message, unread.

    Raises:
        RowError: the reason; the order of the roles is not looked at here.
    """
    if not isinstance(value, list):
        raise RowError(_misfit(value, name, "a list of messages"))
    if not value:
        raise RowError(f"'{name}' is empty")
    if not response and _role(value[-1]) == "assistant":
        value = value[:-1]
    return [_message(turn) for turn in value]


def _role(turn: Any) -> str:
    """One of `conversation.ROLES`. OpenAI's spelling and ShareGPT's are told apart by their keys, in either format."""
    if not isinstance(turn, dict):
        raise RowError(f"a message is {describe_type(turn)} where an object belongs")
    key, roles = ("from", SHAREGPT_ROLES) if "from" in turn and "role" not in turn else ("role", OPENAI_ROLES)
    if key not in turn:
        raise RowError(f"a message has no '{key}'{did_you_mean(key, map(str, turn))}")
    name = checked_text(turn[key], key)
    if name not in roles:
        raise RowError(f"unknown role '{name}'{did_you_mean(name, roles) or '; one of ' + ', '.join(roles)}")
    return roles[name]


def _message(turn: Any) -> Message:
    role = _role(turn)
    key = "content" if "role" in turn else "value"
    calls = _tool_calls(turn, role)
    content = turn.get(key, _MISSING)
    if content is _MISSING and not calls:
        raise RowError(f"a message has no '{key}'{did_you_mean(key, map(str, turn))}")
    text = "" if calls and content in (None, _MISSING) else checked_text(content, key)
    if not text.strip() and not calls and role in ("user", "assistant"):
        raise RowError(f"{_a(role)} message is empty")
    return Message(role, text, train=_train(turn), tool_calls=calls)


def _tool_calls(turn: dict[str, Any], role: str) -> tuple[dict[str, Any], ...]:
    calls = turn.get("tool_calls")
    if not calls:
        return ()
    if role != "assistant":
        raise RowError(f"{_a(role)} message has tool_calls")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(_misfit(calls, "tool_calls", "a list of objects"))
    checked_text(json.dumps(calls, ensure_ascii=False, default=str), "tool_calls")
    return tuple(calls)


def _train(turn: dict[str, Any]) -> bool | None:
    """Read the turn's own flag: `train`, or `weight` as OpenAI spells it; columnar files fill gaps with null."""
    for key, values in (("train", "true nor false"), ("weight", "0 nor 1")):
        flag = turn.get(key)
        if flag is not None:
            if flag not in (0, 1):
                raise RowError(f"'{key}' is neither {values}")
            return bool(flag)
    return None


def check_order(messages: list[Message]) -> None:
    """Refuse messages unless user and assistant alternate, after a system message or none, tools after an assistant.

    Raises:
        RowError: where the order breaks first.
    """
    previous = ""
    for message in messages:
        if message.role not in FOLLOWERS[previous]:
            if not previous:
                raise RowError(f"starts with {_a(message.role)} message")
            if previous == message.role:
                raise RowError(f"two {previous} messages in a row")
            raise RowError(f"{_a(message.role)} message follows {_a(previous)} message")
        previous = message.role
    if previous in ("", "system"):
        raise RowError("only a system message" if previous else "no user message")


def checked_text(value: Any, name: str) -> str:
    """Return the value, or raise a `RowError` unless it is text that has a UTF-8 form."""
    if not isinstance(value, str):
        raise RowError(_misfit(value, name, "text"))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"'{name}' holds {LONE_SURROGATE}") from None
    return value


def full_text(value: Any, name: str) -> str:
    """Return the value as `checked_text` does; white space alone is refused, too."""
    text = checked_text(value, name)
    if not text.strip():
        raise RowError(f"'{name}' is empty")
    return text


def _misfit(value: Any, name: str, wanted: str) -> str:
    return f"'{name}' is null" if value is None else f"'{name}' is {describe_type(value)} where {wanted} belongs"


def describe_type(value: Any) -> str:
    """Describe what a value is, in words that fit after "is"."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _a(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"
