"""What a row says beside its turns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.formats import check_format, to_conversation, to_prompt
from alignkit.data.rows.keys import COLUMNS, Use, spellings
from alignkit.data.rows.preferences import to_preference
from alignkit.data.rows.values import RowError, RowUnusable

ROW = {"instruction": "Hi", "output": "Ho"}
TURNS = (Message("user", "Hi"), Message("assistant", "Ho"))
BARE = {"name": "add", "parameters": {}}
ADD = {"type": "function", "function": BARE}
ROWS = {
    "instruction": ROW,
    "prompt_completion": {"prompt": "Hi", "completion": "Ho"},
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
}


def read(columns: dict[str, str] | None = None, **beside: Any) -> Conversation:
    return to_conversation({**ROW, **beside}, "instruction", columns or {})


def reason(**beside: Any) -> str:
    with pytest.raises(RowError) as caught:
        read(**beside)
    return str(caught.value)


@pytest.mark.parametrize("format", ROWS)
def test_every_format_reads_what_stands_beside_its_turns(format: str) -> None:
    beside = {"system": "Be brief.", "history": [["a", "b"]], "tools": [ADD], "documents": [{"text": "t"}]}
    first = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b"))
    row = ROWS[format] | beside
    expected = Conversation((*first, *TURNS), tools=(ADD,), template_kwargs={"documents": [{"text": "t"}]})
    assert to_conversation(row, format, {}) == expected
    assert to_prompt(row, format, {}) == expected.prompt()


def test_a_function_of_the_users_own_may_return_them(tmp_path: Any) -> None:
    own = tmp_path / "own_rows_beside.py"
    own.write_text(
        "def read(row):\n    return {'prompt': 'Hi', 'completion': 'Ho', 'tools': row['t'], 'label': row['l']}\n"
    )
    assert to_conversation({"t": [ADD], "l": True}, f"{own}:read", {}) == Conversation(TURNS, tools=(ADD,))
    with pytest.raises(RowUnusable, match="labelled_bad"):
        to_conversation({"t": [ADD], "l": False}, f"{own}:read", {})
    with pytest.raises(RowError, match="returned a row that is wrong: a tool has no name"):
        to_conversation({"t": [{}], "l": True}, f"{own}:read", {})


def test_both_sides_of_a_pair_have_them() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    sides = {
        "chosen": [{"role": "assistant", "reasoning": "Hm.", "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "3", "reasoning": "Oh."}],
    }
    row = {"prompt": "Hi", **sides, "tools": [ADD], "chat_template_kwargs": {"enable_thinking": True}}
    pair = to_preference(row, "pairs", {})
    better, worse = pair.sides()
    assert better.tools == worse.tools == (ADD,)
    assert better.template_kwargs == worse.template_kwargs == {"enable_thinking": True}
    assert better.messages[-1] == Message("assistant", "", tool_calls=(call,), reasoning="Hm.")
    assert worse.messages[-1] == Message("assistant", "3", reasoning="Oh.")
    with pytest.raises(RowError, match="a call of 'add', which no tool of the row describes"):
        to_preference(row | {"tools": [{"name": "sub"}]}, "pairs", {})
    assert to_preference(row | {"tools": None}, "pairs", {}).prompt.notes == ("rows with calls and no tools",)


def test_a_pair_of_transcripts_may_have_a_system_message() -> None:
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Ho",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No",
        "system": "Be brief.",
    }
    assert to_preference(row, "hh", {}).prompt.messages == (Message("system", "Be brief."), Message("user", "Hi"))


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_what_is_null_or_empty_is_absent(nothing: Any) -> None:
    beside = dict.fromkeys(set(COLUMNS) - {*ROW, "input"}, nothing)
    assert read(**beside) == Conversation(TURNS)


@pytest.mark.parametrize("name", spellings(Use.refused))
def test_what_a_text_model_cannot_see_is_refused_by_name(name: str) -> None:
    assert reason(**{name: ["cat.png"]}).endswith(f"not supported: '{name}'")


@pytest.mark.parametrize(
    "tools",
    [
        [ADD],
        json.dumps([ADD]),
        [BARE],
        [json.dumps(ADD)],
        [{**BARE, "type": "function"}],
        [{**ADD, "strict": None}],
    ],
)
def test_tools_in_every_spelling(tools: Any) -> None:
    assert read(tools=tools).tools == read(functions=tools).tools == (ADD,)
    assert read(tools=tools, functions=[ADD]).tools == (ADD,)


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        ("add(a, b)", "'tools' is no JSON"),
        ({"name": "add"}, "'tools' is an object where a list belongs"),
        ("3", "'tools' is a number where a list belongs"),
        ([3], "'tools' is a number where a list of objects belongs"),
        ([{"description": "Adds."}], "a tool has no name"),
        ([{"type": "function", "function": {"name": ""}}], "a tool has no name"),
    ],
)
def test_mistakes_in_tools(tools: Any, text: str) -> None:
    assert reason(tools=tools) == text


def test_a_system_message_may_be_there_twice_but_not_two_of_them() -> None:
    turns = [{"role": "system", "content": "Be brief."}, *ROWS["messages"]["messages"]]
    row = {"messages": turns, "system": "Be brief. ", "history": [["a", "b"]]}
    messages = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b"), *TURNS)
    assert to_conversation(row, "messages", {}).messages == messages
    with pytest.raises(RowError, match="the row's system message and that of its turns differ"):
        to_conversation(row | {"system": "Be long."}, "messages", {})
    assert reason(system="a", system_prompt="b") == "'system' and 'system_prompt' differ"


@pytest.mark.parametrize(
    ("history", "text"),
    [
        ("Hi", "'history' is no JSON"),
        ({"user": "a"}, "'history' is an object where a list of [user, assistant] belongs"),
        (["a", "b"], "'history' has a turn that is no [user, assistant]"),
        ([["a"]], "'history' has a turn that is no [user, assistant]"),
        ([["a", 3]], "'history' is a number where text belongs"),
        ([["a", None]], "'history' is null"),
        ([["a", " "]], "'history' has an empty turn"),
    ],
)
def test_mistakes_in_the_history(history: Any, text: str) -> None:
    assert reason(history=history) == text


def test_arguments_of_the_template_have_columns_of_their_own_or_one_together() -> None:
    own = {
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "documents": '[{"text": "t"}]',
    }
    assert read(**own).template_kwargs == own | {"documents": [{"text": "t"}]}
    together = {"enable_thinking": False, "reasoning_effort": "low", "other": None}
    for kwargs in (together, json.dumps(together)):
        found = read(chat_template_kwargs=kwargs, reasoning_effort="low").template_kwargs
        assert found == {"enable_thinking": False, "reasoning_effort": "low"}


@pytest.mark.parametrize(
    ("beside", "text"),
    [
        ({"chat_template_kwargs": "low"}, "'chat_template_kwargs' is no JSON"),
        ({"chat_template_kwargs": [1]}, "'chat_template_kwargs' is a list where an object belongs"),
        (
            {"chat_template_kwargs": {"tools": []}},
            "'chat_template_kwargs' has 'tools', which is no argument of a template",
        ),
        (
            {"chat_template_kwargs": {"reasoning_effort": "low"}, "reasoning_effort": "high"},
            "'reasoning_effort' and 'chat_template_kwargs' differ",
        ),
        ({"documents": ["t"]}, "'documents' is a list where a list of objects belongs"),
        ({"documents": "t"}, "'documents' is no JSON"),
    ],
)
def test_mistakes_in_arguments(beside: dict[str, Any], text: str) -> None:
    assert reason(**beside) == text


@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_a_label_keeps_a_row_or_leaves_it_out(name: str) -> None:
    for good in (True, 1, 1.0, "true", "1", None):
        assert read(**{name: good}) == Conversation(TURNS)
    for bad in (False, 0, "False", "0"):
        with pytest.raises(RowUnusable, match="labelled_bad"):
            read(**{name: bad})
    for neither in (2, "good", [True]):
        assert reason(**{name: neither}) == "'label' is neither true nor false"
    prompt = {"instruction": "Hi", "output": "Ho", name: False}
    assert to_prompt(prompt, "instruction", {}) == Conversation(TURNS[:1])
    assert to_conversation({"text": "Hi", name: False}, "text", {}).plain


def test_mapped_columns_are_read_and_not_under_their_own_names() -> None:
    row = {"said": "Be brief.", "fns": {"list": [ADD]}, "earlier": [["a", "b"]], "good": 1, "tools": "x", **ROW}
    columns = {"system": "said", "tools": "fns.list", "history": "earlier", "label": "good"}
    assert check_format("instruction", columns, setting="data") == []
    assert to_conversation(row, "instruction", columns) == read(system="Be brief.", tools=[ADD], history=[["a", "b"]])
    labelled = {"instruction": "Hi", "label": "Ho"}
    assert to_conversation(labelled, "instruction", {"output": "label"}) == Conversation(TURNS)
