"""Messages with reasoning, calls, results and parts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit.data.rows.conversation import Message
from alignkit.data.rows.formats import to_conversation
from alignkit.data.rows.keys import MESSAGE_KEYS, Use, spellings
from alignkit.data.rows.turns import read_turns
from alignkit.data.rows.values import RowError

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Ho"}


def read(turn: dict[str, Any]) -> Message:
    (message,) = read_turns([turn], "messages")
    return message


def reason(*turns: dict[str, Any], **row: Any) -> str:
    with pytest.raises(RowError) as caught:
        to_conversation({"messages": list(turns), **row}, "messages", {})
    return str(caught.value)


def call(name: str = "add", arguments: Any = None, **others: Any) -> dict[str, Any]:
    return {
        "type": "function",
        **others,
        "function": {"name": name, "arguments": {} if arguments is None else arguments},
    }


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "tool_plan"])
def test_reasoning_has_several_spellings(key: str) -> None:
    assert read({**ASSISTANT, key: "Hm.\n"}) == Message("assistant", "Ho", reasoning="Hm.\n")
    assert read({**ASSISTANT, key: None}) == read({**ASSISTANT, key: " "}) == Message("assistant", "Ho")
    assert read({**USER, key: None}) == Message("user", "Hi")
    assert reason({**USER, key: "Hm."}, ASSISTANT) == "a user message has reasoning"
    assert reason(USER, {**ASSISTANT, key: ["Hm."]}) == f"'{key}' is a list where text belongs"


def test_two_spellings_that_agree_are_one() -> None:
    twice = {**ASSISTANT, "reasoning": "Hm.", "thinking": "Hm."}
    assert read(twice).reasoning == "Hm."
    assert read(twice | {"thinking": ""}).reasoning == "Hm."
    assert reason(USER, twice | {"thinking": "Oh."}) == "'reasoning' and 'thinking' differ"
    assert read({**ASSISTANT, "train": True, "weight": 1.0}).train is True
    assert reason(USER, {**ASSISTANT, "train": True, "weight": 0}) == "'train' and 'weight' differ"


@pytest.mark.parametrize("key", ["train", "loss", "weight", "loss_weight"])
def test_a_flag_has_several_spellings(key: str) -> None:
    assert [read({**ASSISTANT, key: flag}).train for flag in (1, 0, None)] == [True, False, None]
    assert reason(USER, {**ASSISTANT, key: 2}).startswith(f"'{key}' is neither ")


def test_turns_may_be_json_text() -> None:
    turns = [USER, {**ASSISTANT, "reasoning": "Hm."}]
    assert read_turns(json.dumps(turns), "messages") == read_turns(turns, "messages")
    for text in ("Hi", "[Hi", '{"role": "user"}'):
        with pytest.raises(RowError, match=r"^'messages' is text where a list of messages belongs$"):
            read_turns(text, "messages")


def test_a_thought_within_the_words_stays_there() -> None:
    assert read({"role": "assistant", "content": "<think>Hm.</think>Ho"}) == Message(
        "assistant", "<think>Hm.</think>Ho"
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([{"function": {"name": "add", "arguments": {"a": 1}}}], [call(arguments={"a": 1})]),
        ([call(arguments='{"a":1}', id="c1")], [call(arguments='{"a":1}', id="c1")]),
        ([call(id=None)], [call()]),
        ([{"name": "add", "arguments": {"a": None}, "id": "c1"}], [call(arguments={"a": None}, id="c1")]),
        ([{"name": "add", "parameters": {"a": 1}}], [call(arguments={"a": 1})]),
        ([{"name": "add"}, {"name": "sub", "arguments": ""}], [call(), call("sub")]),
        ('[{"name": "add"}]', [call()]),
    ],
)
def test_calls_become_those_of_openai(given: Any, expected: list[dict[str, Any]]) -> None:
    assert read({"role": "assistant", "content": None, "tool_calls": given}) == Message(
        "assistant", "", tool_calls=tuple(expected)
    )


def test_the_old_spelling_of_one_call() -> None:
    once = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}
    assert read(once).tool_calls == (call(arguments="{}"),)
    assert read(once | {"tool_calls": None}) == read(once | {"tool_calls": [call(arguments="{}")]}) == read(once)
    assert reason(USER, once | {"tool_calls": [call("sub")]}) == "'tool_calls' and 'function_call' differ"


def test_names_and_ids_are_kept_and_null_is_absent() -> None:
    result = {"role": "tool", "content": "3", "name": "add", "tool_call_id": "c1"}
    assert read(result) == Message("tool", "3", name="add", tool_call_id="c1")
    nothing = dict.fromkeys({*MESSAGE_KEYS} - {"role", "content"})
    assert read({**nothing, **ASSISTANT}) == Message("assistant", "Ho")
    assert read({**nothing, "from": "gpt", "value": "Ho", "role": None}) == Message("assistant", "Ho")
    assert reason(USER, {**ASSISTANT, "name": 3}) == "'name' is a number where text belongs"


@pytest.mark.parametrize("key", spellings(Use.refused, MESSAGE_KEYS))
def test_keys_that_have_no_place_are_refused_by_name_where_something_is_in_them(key: str) -> None:
    for nothing in (None, "", [], {}):
        assert read({**ASSISTANT, key: nothing}) == Message("assistant", "Ho")
    assert reason(USER, {**ASSISTANT, key: "x"}).startswith("an assistant message: ")
    assert f"'{key}'" in reason(USER, {**ASSISTANT, key: "x"})


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([{"type": "text", "text": "a "}, {"type": "text", "value": "b"}], Message("assistant", "a b")),
        (
            [{"type": "reasoning", "value": "Hm."}, {"type": "text", "text": "a"}],
            Message("assistant", "a", reasoning="Hm."),
        ),
        (
            [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}],
            Message("assistant", "a", reasoning="Hm."),
        ),
        (
            [
                {"type": "reasoning", "text": "Hm."},
                {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"type": "tool_call", "value": {"name": "sub"}},
            ],
            Message("assistant", "", reasoning="Hm.", tool_calls=(call(arguments={"a": 1}), call("sub"))),
        ),
        (
            [{"type": "tool_call", "name": "add", "arguments": "{}", "id": "c"}],
            Message("assistant", "", tool_calls=(call(arguments="{}", id="c"),)),
        ),
        ([{"type": "text", "text": "a", "image": None, "value": None}], Message("assistant", "a")),
        ([{"type": "text", "text": ""}, {"type": "text", "text": "a"}], Message("assistant", "a")),
    ],
)
def test_parts_of_a_message(parts: list[Any], expected: Message) -> None:
    assert read({"role": "assistant", "content": parts}) == expected


def test_a_list_within_the_text_of_a_result_stays_text() -> None:
    text = '[{"name": "add", "content": 3}]'
    for content in (text, [{"type": "text", "value": text}]):
        assert read({"role": "tool", "content": content}) == Message("tool", text)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([{"type": "image_url", "image_url": {"url": "u"}}], "images are not supported: 'image_url'"),
        ([{"type": "input_audio", "input_audio": {}}], "audio is not supported: 'input_audio'"),
        ([{"type": "video"}], "videos are not supported: 'video'"),
        ([{"type": "text", "text": "a", "image": "u"}], "images are not supported: 'image'"),
        (
            [{"type": "file"}],
            "a part of a message is of type 'file'; one of reasoning, thinking, text, input_text, output_text, "
            "tool_call",
        ),
        ([{"text": "a"}], "'type' is null"),
        ([{"type": "text", "txt": "a"}], "a part of type 'text' has no 'text'; did you mean 'txt'?"),
        (["a"], "a part of a message is text where an object belongs"),
        ([{"type": "text", "text": "a", "value": "b"}], "'text' and 'value' differ"),
        (
            [{"type": "text", "text": "a"}, {"type": "reasoning", "value": "b"}],
            "a part of type 'reasoning' follows one of type 'text', and templates write reasoning, words and calls in "
            "this order: sort the parts, or make several messages of them",
        ),
        ([{"type": "tool_call", "value": "f("}], "'tool_call' is no JSON"),
        ([], "an assistant message is empty"),
    ],
)
def test_mistakes_in_parts(parts: list[Any], text: str) -> None:
    assert reason(USER, {"role": "assistant", "content": parts}) == text


def test_parts_of_a_user_are_words_alone() -> None:
    parts = [{"type": "tool_call", "value": {"name": "add"}}]
    assert reason({"role": "user", "content": parts}, ASSISTANT) == "a user message has tool_calls"


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        ([{"function": {"arguments": {}}}], "a call has no name"),
        ([{"arguments": {}}], "a call has no name"),
        ([{"name": " "}], "a call has no name"),
        ([{"name": "add", "arguments": "1 + 2"}], "'arguments' is no JSON"),
        ([{"name": "add", "arguments": "[1]"}], "'arguments' is a list where an object belongs"),
        ([{"name": "add", "arguments": 3}], "'arguments' is a number where an object belongs"),
    ],
)
def test_mistakes_in_calls(calls: Any, text: str) -> None:
    assert reason(USER, {"role": "assistant", "tool_calls": calls}) == text


def sharegpt(*turns: tuple[str, str]) -> list[Message]:
    return read_turns([{"from": speaker, "value": value} for speaker, value in turns], "conversations")


def test_calls_and_results_of_sharegpt_are_real_ones() -> None:
    called = ("function_call", '{"name": "add", "arguments": {"a": 1}}')
    assert sharegpt(("human", "Hi"), called, ("observation", "3")) == [
        Message("user", "Hi"),
        Message("assistant", "", tool_calls=(call(arguments={"a": 1}),)),
        Message("tool", "3", name="add"),
    ]


def test_parallel_calls_of_sharegpt_name_their_results_where_each_has_one() -> None:
    called = ("function_call", '[{"name": "add", "id": "c1"}, {"name": "sub"}]')
    both = sharegpt(called, ("observation", "3"), ("observation", "4"))
    assert both[0].tool_calls == (call(id="c1"), call("sub"))
    assert both[1:] == [Message("tool", "3", name="add", tool_call_id="c1"), Message("tool", "4", name="sub")]
    assert sharegpt(called, ("observation", "3, 4"))[1:] == [Message("tool", "3, 4")]


def test_a_function_call_of_sharegpt_that_is_none() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "add(1)"}]
    with pytest.raises(RowError, match="'function_call' is no JSON"):
        to_conversation({"conversations": turns}, "sharegpt", {})


def test_a_developer_is_a_role_of_its_own() -> None:
    turns = [{"role": "developer", "content": "Be brief."}, USER, ASSISTANT]
    assert to_conversation({"messages": turns}, "messages", {}).messages[0] == Message("developer", "Be brief.")


TOOLS = [{"name": "add"}]
CALLED = {"role": "assistant", "tool_calls": [call(id="c1")]}
RESULT = {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([USER, ASSISTANT, RESULT, ASSISTANT], "a tool's result without a call"),
        ([USER, CALLED, RESULT, RESULT], "a tool's result without a call"),
        ([USER, CALLED, {**RESULT, "tool_call_id": "c2"}], "a tool's result has a tool_call_id that no call has"),
        ([USER, {**CALLED, "tool_calls": [call("sub")]}], "a call of 'sub', which no tool of the row describes"),
    ],
)
def test_calls_results_and_tools_that_do_not_belong_together(turns: list[Any], text: str) -> None:
    assert reason(*turns, tools=TOOLS) == text


def test_several_steps_and_parallel_results_belong_together() -> None:
    twice = {"role": "assistant", "tool_calls": [call(id="c2"), call(id="c3")]}
    results = [{**RESULT, "tool_call_id": name} for name in ("c2", "c3")]
    turns = [USER, CALLED, RESULT, twice, *results, ASSISTANT]
    assert to_conversation({"messages": turns, "tools": TOOLS}, "messages", {}).notes == ()
    assert to_conversation({"messages": turns}, "messages", {}).notes == ("rows with calls and no tools",)
