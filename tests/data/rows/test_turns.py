from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.rows.conversation import ROLES, Message
from alignkit.data.rows.formats import to_conversation
from alignkit.data.rows.turns import FOLLOWERS, SYSTEM_ROLES, check_order, read_turns
from alignkit.data.rows.values import RowError

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "3"}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def reason(*turns: Any) -> str:
    with pytest.raises(RowError) as caught:
        to_conversation({"messages": list(turns)}, "messages", {})
    return str(caught.value)


def test_tool_calls_are_kept_as_they_are() -> None:
    for content in ({"content": None}, {}, {"content": ""}):
        turns = [USER, {"role": "assistant", "tool_calls": [CALL], **content}, TOOL, TOOL, ASSISTANT]
        assert read_turns(turns, "messages") == [
            Message("user", "Hi"),
            Message("assistant", "", tool_calls=(CALL,)),
            Message("tool", "3"),
            Message("tool", "3"),
            Message("assistant", "Hello"),
        ]


def test_both_spellings_in_either_format() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "chatgpt", "value": "Hello"}]
    assert read_turns(turns, "messages") == read_turns([USER, ASSISTANT], "conversations")


def test_the_turns_own_flag() -> None:
    flags = [({"train": True}, True), ({"train": False}, False), ({"weight": 0}, False), ({"weight": 1.0}, True)]
    flags += [({"train": None}, None), ({"weight": None}, None), ({}, None)]
    for given_flag, expected in flags:
        assert read_turns([{**ASSISTANT, **given_flag}], "messages")[0].train is expected
    assert reason(USER, {**ASSISTANT, "train": "yes"}) == "'train' is neither true nor false"
    assert reason(USER, {**ASSISTANT, "weight": 0.5}) == "'weight' is neither 0 nor 1"


def test_an_empty_system_message_is_none() -> None:
    row = {"messages": [{"role": "system", "content": " "}, USER, ASSISTANT]}
    assert to_conversation(row, "messages", {}).messages == (Message("user", "Hi"), Message("assistant", "Hello"))


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([SYSTEM], "only a system message"),
        ([USER], "no assistant message"),
        ([SYSTEM, USER], "no assistant message"),
        ([ASSISTANT], "starts with an assistant message"),
        ([TOOL], "starts with a tool message"),
        ([SYSTEM, ASSISTANT], "starts with an assistant message"),
        ([USER, USER, ASSISTANT], "two user messages in a row"),
        ([USER, ASSISTANT, ASSISTANT], "two assistant messages in a row"),
        ([USER, TOOL, ASSISTANT], "a tool message follows a user message"),
        ([USER, SYSTEM, USER, ASSISTANT], "two user messages in a row"),
        ([USER, ASSISTANT, SYSTEM], "ends with a system message"),
        ([USER, ASSISTANT, TOOL, USER], "a user message follows a tool message"),
        ([{"role": "usr", "content": "a"}], "unknown role 'usr'; did you mean 'user'?"),
        (
            [{"role": "narrator", "content": "a"}],
            "unknown role 'narrator'; one of system, developer, user, assistant, tool, function, tool_response, "
            "observation, ipython, tool_call, function_call",
        ),
        ([{"from": "humna", "value": "a"}], "unknown role 'humna'; did you mean 'human'?"),
        ([{"role": None, "content": "a"}], "'role' is null"),
        ([{"rolle": "user", "content": "a"}], "a message has no 'role'; did you mean 'rolle'?"),
        ([{"role": "user", "contnet": "a"}], "a message has no 'content'; did you mean 'contnet'?"),
        ([{"from": "human", "text": "a"}], "a message has no 'value'"),
        (["Hi", "Hello"], "a message is text where an object belongs"),
        ([USER, {"role": "assistant", "content": None}], "'content' is null"),
        ([USER, {"role": "assistant", "content": 3}], "'content' is a number where text belongs"),
        ([USER, {"role": "assistant", "content": "\n"}], "an assistant message is empty"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": []}], "an assistant message is empty"),
        ([{"role": "user", "content": ""}, ASSISTANT], "a user message is empty"),
        ([USER, {"role": "assistant", "content": "\ud83d"}], "'content' holds half a character (a lone surrogate)"),
        ([{**USER, "tool_calls": [CALL]}, ASSISTANT], "a user message has tool_calls"),
        ([USER, {**ASSISTANT, "tool_calls": "f()"}], "'tool_calls' is no JSON"),
        ([USER, {**ASSISTANT, "tool_calls": '"f()"'}], "'tool_calls' is text where a list of objects belongs"),
        ([USER, {**ASSISTANT, "tool_calls": ["f()"]}], "'tool_calls' is a list where a list of objects belongs"),
        (
            [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "\ud83d"}}]}],
            "'tool_calls' holds half a character (a lone surrogate)",
        ),
    ],
)
def test_mistakes(turns: list[Any], text: str) -> None:
    assert reason(*turns) == text


@given(st.lists(st.sampled_from(ROLES), max_size=6))
def test_an_order_is_refused_unless_every_step_is_allowed(roles: list[str]) -> None:
    turns = [role for role in roles if role not in SYSTEM_ROLES]
    allowed = all(role in FOLLOWERS[before] for before, role in zip(["", *turns], turns, strict=False))
    allowed = allowed and (turns[-1:] != ["assistant"] or roles[-1] == "assistant")
    messages = [Message(role, "text") for role in roles]
    if allowed and "user" in roles:
        check_order(messages)
    else:
        with pytest.raises(RowError):
            check_order(messages)
