"""Chat turns: from messages as data sets spell them to messages in an order that a template can render."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

from alignkit.data.rows.content_parts import Content, read_parts
from alignkit.data.rows.conversation import Message
from alignkit.data.rows.keys import MESSAGE_KEYS, Use, refusal, spellings
from alignkit.data.rows.tool_calls import Call, name_of, read_calls
from alignkit.data.rows.typed_calls import untyped
from alignkit.data.rows.values import (
    RowError,
    checked_text,
    describe_type,
    full_text,
    given,
    is_nothing,
    listed,
    misfit,
)
from alignkit.errors import did_you_mean

OPENAI_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_call": "assistant",
    "function_call": "assistant",
}
SHAREGPT_ROLES = {
    "system": "system",
    "developer": "developer",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "ipython": "tool",
}
SYSTEM_ROLES = ("system", "developer")  # they may stand anywhere; a template that has no place for them says so
FOLLOWERS = {"": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}

_REASONING = spellings(Use.reasoning, MESSAGE_KEYS)
_CALLS = spellings(Use.calls, MESSAGE_KEYS)
_FLAGS = spellings(Use.flag, MESSAGE_KEYS)
_REFUSED = frozenset(spellings(Use.refused, MESSAGE_KEYS))
_CALL_ROLES = ("function_call", "tool_call")  # their content is calls
_PLAIN = frozenset({"role", "content", "from", "value"})  # what most messages have, and nothing else
_MISSING = object()


def messages_from(role: str, value: Any, name: str, *, response: bool = True) -> list[Message]:
    """Read a field that holds one text, said by `role`, or a list of messages as in `read_turns`."""
    if isinstance(value, list):
        return read_turns(value, name, response=response)
    return [Message(role, full_text(value, name))]


def read_turns(value: Any, name: str, *, response: bool = True) -> list[Message]:
    """Read a list of turns.

    Args:
        value: the list, or its JSON text; each item in OpenAI's spelling (`role`, `content`) or ShareGPT's (`from`,
            `value`).
        name: the column it came from.
        response: False leaves off a last assistant message, unread.

    Raises:
        RowError: the reason; the order of the roles is not looked at here.
    """
    value = listed(value)
    if not isinstance(value, list):
        raise RowError(misfit(value, name, "a list of messages"))
    if not value:
        raise RowError(f"'{name}' is empty")
    if not response and _role(value[-1]) == "assistant":
        value = value[:-1]
    messages = [_message(turn) for turn in value]
    is_call = [_spelled(turn) in _CALL_ROLES for turn in value]
    messages = untyped(_joined(messages, is_call) if True in is_call else messages)
    return _named_results(messages) if True in is_call or any("role" not in turn for turn in value) else messages


def _joined(messages: list[Message], is_call: list[bool]) -> list[Message]:
    """Join a turn of calls to the assistant's turn right before it: they are one, of words and calls."""
    joined: list[Message] = []
    for message, holds_calls in zip(messages, is_call, strict=True):
        before = joined[-1] if joined else None
        is_one = before is not None and before.role == "assistant" and before.train == message.train
        if holds_calls and is_one and before and not message.reasoning:
            joined[-1] = replace(before, tool_calls=before.tool_calls + message.tool_calls)
        else:
            joined.append(message)
    return joined


def _spelled(turn: dict[str, Any]) -> Any:
    return turn.get("role" if _is_openai(turn) else "from")


def _role(turn: Any) -> str:
    """One of `conversation.ROLES`. OpenAI's spelling and ShareGPT's are told apart by their keys, in either format."""
    if not isinstance(turn, dict):
        raise RowError(f"a message is {describe_type(turn)} where an object belongs")
    key, roles = ("role", OPENAI_ROLES) if _is_openai(turn) else ("from", SHAREGPT_ROLES)
    if key not in turn:
        raise RowError(f"a message has no '{key}'{did_you_mean(key, map(str, turn))}")
    name = checked_text(turn[key], key)
    if name not in roles:
        raise RowError(f"unknown role '{name}'{did_you_mean(name, roles) or '; one of ' + ', '.join(roles)}")
    return roles[name]


def _is_openai(turn: dict[str, Any]) -> bool:
    return turn.get("role") is not None or turn.get("from") is None


def _message(turn: Any) -> Message:
    role = _role(turn)
    key = "content" if _is_openai(turn) else "value"
    content = turn.get(key, _MISSING)
    if turn.keys() <= _PLAIN and isinstance(content, str) and _spelled(turn) not in _CALL_ROLES:
        message = Message(role, checked_text(content, key))
    else:
        message = _full_message(turn, role, key, content)
    if role in ("user", "assistant") and not message.content.strip() and not message.tool_calls:
        raise RowError(f"{_a(role)} message is empty")
    return message


def _full_message(turn: dict[str, Any], role: str, key: str, value: Any) -> Message:
    for name in turn.keys() & _REFUSED:
        if not is_nothing(turn[name]):
            raise RowError(f"{_a(role)} message: {refusal(name)}")
    parts = _content(turn, key, value)
    reasoning, calls = _reasoning(turn, parts), _calls(turn, parts)
    if role != "assistant" and (reasoning or calls):
        raise RowError(f"{_a(role)} message has {'reasoning' if reasoning else 'tool_calls'}")
    if value is _MISSING and not calls:
        raise RowError(f"a message has no '{key}'{did_you_mean(key, map(str, turn))}")
    if value is None and not calls:
        raise RowError(f"'{key}' is null")
    return Message(
        role,
        parts.text,
        train=_train(turn),
        tool_calls=calls,
        reasoning=reasoning,
        name=_text(turn, "name"),
        tool_call_id=_text(turn, "tool_call_id"),
    )


def _content(turn: dict[str, Any], key: str, value: Any) -> Content:
    """Read the content: words, a list of parts, or, in a turn of that name, calls."""
    if value is None or value is _MISSING:
        return Content()
    if (spelled := _spelled(turn)) in _CALL_ROLES:
        return Content(calls=read_calls(value, spelled))
    return read_parts(value) if isinstance(value, list) else Content(checked_text(value, key))


def _reasoning(turn: dict[str, Any], parts: Content) -> str:
    spelled = {name: turn.get(name) for name in _REASONING} | {"content": parts.reasoning}
    texts = {name: checked_text(value, name) for name, value in spelled.items() if not is_nothing(value)}
    return given({name: text for name, text in texts.items() if text.strip()}, texts) or ""


def _calls(turn: dict[str, Any], parts: Content) -> tuple[Call, ...]:
    spelled = {name: read_calls(turn[name], name) for name in _CALLS if not is_nothing(turn.get(name))}
    if parts.calls:
        spelled["content"] = parts.calls
    return given(spelled, spelled) or ()


def _text(turn: dict[str, Any], key: str) -> str:
    return "" if turn.get(key) is None else checked_text(turn[key], key)


def _train(turn: dict[str, Any]) -> bool | None:
    """Read the turn's own flag: `train`, `loss`, or a weight of 0 or 1; columnar files fill gaps with null."""
    for name in _FLAGS:
        flag = turn.get(name)
        if flag is not None and flag not in (0, 1):
            raise RowError(f"'{name}' is neither {'true nor false' if name in ('train', 'loss') else '0 nor 1'}")
    flag = given(turn, _FLAGS)
    return None if flag is None else bool(flag)


def _named_results(messages: list[Message]) -> list[Message]:
    """Give a result the name and id of its call, where there is one result for each call: ShareGPT's have neither."""
    messages = list(messages)
    for index, message in enumerate(messages):
        results = (
            list(takewhile(lambda other: other.role == "tool", messages[index + 1 :])) if message.tool_calls else []
        )
        if len(results) == len(message.tool_calls):
            for place, (result, call) in enumerate(zip(results, message.tool_calls, strict=True), start=index + 1):
                messages[place] = replace(
                    result,
                    name=result.name or name_of(call),
                    tool_call_id=result.tool_call_id or str(call.get("id", "")),
                )
    return messages


def check_order(messages: list[Message]) -> None:
    """Refuse messages unless user and assistant alternate, the user first, tools after an assistant.

    System messages may stand between any of them, but teach nothing behind the last answer.

    Raises:
        RowError: where the order breaks first.
    """
    previous = ""
    for message in messages:
        if message.role in SYSTEM_ROLES:
            continue
        if message.role not in FOLLOWERS[previous]:
            if not previous:
                raise RowError(f"starts with {_a(message.role)} message")
            if previous == message.role:
                raise RowError(f"two {previous} messages in a row")
            raise RowError(f"{_a(message.role)} message follows {_a(previous)} message")
        previous = message.role
    if not previous:
        raise RowError(f"only {_a(messages[0].role)} message" if messages else "no user message")
    if previous == "assistant" and messages[-1].role in SYSTEM_ROLES:
        raise RowError(f"ends with {_a(messages[-1].role)} message")


def _a(role: str) -> str:
    return f"an {role}" if role == "assistant" else f"a {role}"
