from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.formats import (
    RowError,
    check_columns,
    check_format,
    detect_format,
    to_conversation,
    to_prompt,
)
from alignkit.errors import DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"  # about twenty rows each, in the shapes of well-known data sets


def reason(row: Any, format: str = "instruction", columns: dict[str, str] | None = None) -> str:
    with pytest.raises(RowError) as caught:
        to_conversation(row, format, columns or {})
    return str(caught.value)


@pytest.mark.parametrize(
    ("columns", "format"),
    [
        (["instruction", "output"], "instruction"),
        (["id", "instruction", "input", "output"], "instruction"),
        (["prompt", "completion"], "prompt_completion"),
        (["messages"], "messages"),
        (["prompt", "prompt_id", "messages"], "messages"),
        (["conversations", "system"], "sharegpt"),
        (["text", "url"], "text"),
    ],
)
def test_a_format_is_known_by_its_columns(columns: list[str], format: str) -> None:
    assert detect_format(columns, {}) == format


@pytest.mark.parametrize("columns", [["prompt"], ["instruction", "input"]])
def test_prompts_alone_are_a_format_only_where_no_response_is_needed(columns: list[str]) -> None:
    assert detect_format(columns, {}, responses=False) == "prompt"
    with pytest.raises(DataError, match="no format fits"):
        detect_format(columns, {})


def test_mapped_fields_count_as_columns_and_their_columns_as_used_up() -> None:
    nested = {"input": "instances.0.input", "output": "instances.0.output"}
    assert detect_format(["id", "instruction", "instances"], {}, columns=nested) == "instruction"
    renamed = {"instruction": "prompt", "output": "completion"}
    assert detect_format(["prompt", "completion"], {}, columns=renamed) == "instruction"


def test_no_fitting_format_lists_the_columns_and_what_each_format_needs() -> None:
    with pytest.raises(DataError) as caught:
        detect_format(["question", "id"], {"id": 7, "question": "2 + 2?"})
    assert str(caught.value) == (
        "data.format: no format fits the columns id (a number), question (text); instruction needs instruction and "
        "output; prompt_completion needs prompt and completion; messages needs messages; sharegpt needs conversations; "
        "text needs text; name yours with data.columns={field: column}"
    )


def test_two_fitting_formats_are_not_guessed_between() -> None:
    with pytest.raises(DataError) as caught:
        detect_format(["instruction", "output", "text"], {"instruction": "a", "output": "b", "text": None})
    assert str(caught.value) == (
        "data.format: instruction and text fit the columns instruction (text), output (text), text (null); "
        "instruction needs instruction and output; text needs text; choose one with data.format"
    )


def test_preference_pairs_are_recognised() -> None:
    with pytest.raises(DataError, match=r"preference pairs \(chosen, rejected\): use alignkit reward or alignkit dpo"):
        detect_format(["conversations", "chosen", "rejected"], {})


def test_a_mapping_to_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        check_columns(["question", "answer"], {"instruction": "question", "output": "answr", "input": "context.0"})
    assert caught.value.problems == (
        "data.columns.output: there is no column 'answr'; did you mean 'answer'?",
        "data.columns.input: there is no column 'context.0'; the columns are answer, question",
    )


@pytest.mark.parametrize(
    ("format", "columns", "problems"),
    [
        ("instruction", {"output": "response"}, []),
        ("auto", {"output": "response", "conversations": "turns"}, []),
        ("my_rows.py:read", {}, []),
        ("instructoin", {}, ["data.format: unknown format 'instructoin'; did you mean 'instruction'?"]),
        (
            "parquet",
            {},
            [
                "data.format: unknown format 'parquet'; one of auto, instruction, prompt_completion, messages, "
                "sharegpt, text, prompt"
            ],
        ),
        (
            "instruction",
            {"outptu": "response", "text": "x", "input": 3},
            [
                "data.columns: no format has a field 'outptu'; did you mean 'output'?",
                "data.columns: no format has a field 'text'; one of chat_template_kwargs, documents, history, input, "
                "instruction, label, output, parallel_tool_calls, reasoning, reasoning_effort, system, tool_choice, "
                "tools",
                "data.columns.input is a number: it must be the name of a column",
            ],
        ),
        (
            "auto",
            {"question": "prompt"},
            [
                "data.columns: no format has a field 'question'; did you mean {prompt: question}, from the field to "
                "your column?"
            ],
        ),
        ("a:b", {"text": "x"}, ["data.columns: a:b sees whole rows, so columns have no effect"]),
    ],
)
def test_mistakes_in_format_and_columns(format: str, columns: dict[str, Any], problems: list[str]) -> None:
    assert check_format(format, columns, setting="data") == problems


def test_instruction_with_and_without_input() -> None:
    row = {"instruction": "Add.", "input": " 1 2", "output": "3\n"}
    expected = Conversation((Message("user", "Add.", input=" 1 2"), Message("assistant", "3\n")))
    assert to_conversation(row, "instruction", {}) == expected
    bare = Conversation((Message("user", "Hi"), Message("assistant", "Hello")))
    for row in ({"input": ""}, {"input": None}, {}):
        assert to_conversation({"instruction": "Hi", "output": "Hello", **row}, "instruction", {}) == bare


def test_columns_reach_into_nested_data_and_win_over_dots() -> None:
    row = {"q": "Why?", "instances": [{"output": "no"}, {"output": "Because."}], "meta.lang": "en"}
    columns = {"instruction": "q", "output": "instances.1.output", "input": "meta.lang"}
    expected = Conversation((Message("user", "Why?", input="en"), Message("assistant", "Because.")))
    assert to_conversation(row, "instruction", columns) == expected


def test_prompt_completion_takes_texts_and_message_lists() -> None:
    expected = Conversation((Message("user", "2+2"), Message("assistant", "4")))
    listed = [{"role": "user", "content": "2+2"}], [{"role": "assistant", "content": "4"}]
    for prompt in ("2+2", listed[0]):
        for completion in ("4", listed[1]):
            row = {"prompt": prompt, "completion": completion}
            assert to_conversation(row, "prompt_completion", {}) == expected


def test_a_response_may_have_its_reasoning_in_a_column() -> None:
    row = {"question": "1+1?", "cot": "One more.\n", "answer": "2", "instruction": "1+1?", "output": "2"}
    thought = Message("assistant", "2", reasoning="One more.")
    columns = {"prompt": "question", "completion": "answer", "reasoning": "cot"}
    assert to_conversation(row, "prompt_completion", columns).messages[1] == thought
    for name in ("reasoning", "reasoning_content", "thinking"):
        given = to_conversation({**row, name: "One more."}, "instruction", {})
        assert given.messages == (Message("user", "1+1?"), thought)
    for switch in ("on", "OFF", True, None, ""):
        assert not to_conversation({**row, "reasoning": switch}, "instruction", {}).messages[1].reasoning
    assert to_prompt({**row, "reasoning": 1}, "instruction", {}).messages == (Message("user", "1+1?"),)


def test_mistakes_in_the_reasoning_of_a_response() -> None:
    row = {"prompt": "1+1?", "completion": "2"}
    turns = [{"role": "assistant", "content": "2"}]
    for extra, text in (
        ({"reasoning": ["One."]}, "'reasoning' is a list where text belongs"),
        ({"reasoning": "One.", "thinking": "Two."}, "'reasoning' and 'thinking' differ"),
        ({"reasoning": "One.", "completion": turns}, "the row's reasoning stands beside a list of messages"),
    ):
        with pytest.raises(RowError, match=re.escape(text)):
            to_conversation({**row, **extra}, "prompt_completion", {})


def test_text_is_plain() -> None:
    expected = Conversation((Message("assistant", " Once upon a time"),), plain=True)
    assert to_conversation({"text": " Once upon a time"}, "text", {}) == expected


def test_sharegpt_with_system_and_tool_turns() -> None:
    row = {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather"}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny."},
        ],
    }
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    assert to_conversation(row, "sharegpt", {}).messages == (
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "sunny", name="weather"),
        Message("assistant", "Sunny."),
    )
    for system in ({"system": ""}, {"system": None}, {}):
        turns = row["conversations"]
        assert to_conversation({"conversations": turns, **system}, "sharegpt", {}).messages[0].role == "user"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([1, 2], "not an object"),
        ("words", "not an object"),
        (None, "not an object"),
        ({"instruction": "a", "outptu": "b"}, "no field 'output'; did you mean 'outptu'?"),
        ({"output": "b"}, "no field 'instruction'"),
        ({"instruction": "a", "output": None}, "'output' is null"),
        ({"instruction": "a", "output": 3}, "'output' is a number where text belongs"),
        ({"instruction": "a", "output": float("nan")}, "'output' is a number where text belongs"),
        ({"instruction": "a", "output": True}, "'output' is true or false where text belongs"),
        ({"instruction": "a", "output": ["b"]}, "'output' is a list where text belongs"),
        ({"instruction": {"a": 1}, "output": "b"}, "'instruction' is an object where text belongs"),
        ({"instruction": b"a", "output": "b"}, "'instruction' is a bytes where text belongs"),
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' is a number where text belongs"),
        ({"instruction": "a", "output": ""}, "'output' is empty"),
        ({"instruction": "a", "output": " \n\t"}, "'output' is empty"),
        ({"instruction": " ", "output": "b"}, "'instruction' is empty"),
        ({"instruction": "a", "output": "\ud83d"}, "'output' holds half a character (a lone surrogate)"),
        ({"instruction": "a", "input": "\udc00", "output": "b"}, "'input' holds half a character (a lone surrogate)"),
    ],
)
def test_mistakes_in_instruction_rows(row: Any, text: str) -> None:
    assert reason(row) == text


def test_mistakes_name_the_column_as_the_data_spells_it() -> None:
    columns = {"output": "instances.0.output"}
    assert reason({"instruction": "a", "instances": []}, columns=columns) == "no field 'instances.0.output'"
    row = {"instruction": "a", "instances": [{"output": None}]}
    assert reason(row, columns=columns) == "'instances.0.output' is null"


@pytest.mark.parametrize(
    ("row", "format", "text"),
    [
        ({"text": ""}, "text", "'text' is empty"),
        ({"prompt": "a", "completion": "  "}, "prompt_completion", "'completion' is empty"),
        ({"prompt": "a", "completion": None}, "prompt_completion", "'completion' is null"),
        ({"prompt": [], "completion": "a"}, "prompt_completion", "'prompt' is empty"),
        ({"conversations": "hi"}, "sharegpt", "'conversations' is text where a list of messages belongs"),
        ({"messages": None}, "messages", "'messages' is null"),
        ({"prompt": "a"}, "prompt", "no assistant message"),
    ],
)
def test_mistakes_in_other_formats(row: Any, format: str, text: str) -> None:
    assert reason(row, format) == text


def test_a_prompt_needs_no_response_and_leaves_one_unread() -> None:
    asked = Conversation((Message("user", "Hi", input="now"),))
    for row in ({}, {"output": "Hello"}, {"output": None}):
        assert to_prompt({"instruction": "Hi", "input": "now", **row}, "instruction", {}) == asked
    assert to_prompt({"instruction": "Hi", "input": "now"}, "prompt", {}) == asked
    assert to_prompt({"q": "Hi", "input": "now"}, "prompt", {"instruction": "q"}) == asked
    assert to_prompt({"prompt": "Hi"}, "prompt", {}) == Conversation((Message("user", "Hi"),))
    assert to_prompt({"prompt": "Hi", "completion": 3}, "prompt_completion", {}) == Conversation(
        (Message("user", "Hi"),)
    )


def test_a_prompt_of_messages_ends_with_the_user_or_a_tool() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    asked = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert to_prompt({"messages": turns}, "messages", {}).messages == asked
    answered = [*turns, {"role": "assistant", "content": None}]
    assert to_prompt({"messages": answered}, "messages", {}).messages == asked
    assert to_prompt({"prompt": answered}, "prompt", {}).messages == asked
    call = {"name": "f", "arguments": {}}
    called = [*turns, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": ""}]
    assert to_prompt({"messages": called}, "messages", {}).messages[-1] == Message("tool", "")


@pytest.mark.parametrize(
    ("row", "format", "text"),
    [
        ({"prompt": ""}, "prompt", "'prompt' is empty"),
        ({"question": "a"}, "prompt", "no field 'prompt'"),
        ({"text": "a"}, "text", "plain text holds no prompt"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "no user message"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages", "only a system message"),
    ],
)
def test_mistakes_in_prompts(row: Any, format: str, text: str) -> None:
    with pytest.raises(RowError) as caught:
        to_prompt(row, format, {})
    assert str(caught.value) == text


OWN = """
from dataclasses import dataclass

@dataclass
class Pair:
    question: str
    answer: str

def pairs(row):
    pair = Pair(row["q"], row["a"])
    return {"prompt": pair.question, "completion": pair.answer}

def turns(row):
    return {"messages": [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]}

def nothing(row):
    return None
"""


def test_a_function_of_ones_own_by_file_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_rows.py").write_text(OWN)
    expected = Conversation((Message("user", "Why?"), Message("assistant", "So.")))
    row = {"q": "Why?", "a": "So."}
    for spec in ("own_rows.py:pairs", f"{tmp_path}/own_rows.py:pairs", "own_rows:turns"):
        assert to_conversation(row, spec, {}) == expected
        assert to_prompt(row, spec, {}) == Conversation((Message("user", "Why?"),))


def test_mistakes_of_a_function_name_it(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path}/own.py"
    assert reason({"q": "a"}, f"{own}:pairs") == f"{own}:pairs raised KeyError: 'a'"
    assert reason({"q": "a", "a": ""}, f"{own}:pairs") == (
        f"{own}:pairs returned a row that is wrong: 'completion' is empty"
    )
    assert reason({}, f"{own}:nothing") == (
        f"{own}:nothing returned null: it must return {{'messages'}} or {{'prompt', 'completion'}}"
    )


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_value_is_text_or_a_reason(value: Any) -> None:
    row = {"instruction": value, "output": "b"}
    if isinstance(value, str) and value.strip():
        assert to_conversation(row, "instruction", {}).messages[0].content == value
    else:
        assert reason(row).startswith("'instruction' is ")


def test_rows_as_data_sets_have_them() -> None:
    instructions = json.loads((FIXTURES / "instructions.json").read_text(encoding="utf-8"))
    assert detect_format(instructions[0].keys(), instructions[0]) == "instruction"
    for row in instructions:
        user, assistant = to_conversation(row, "instruction", {}).messages
        assert (user.content, user.input, assistant.content) == (row["instruction"], row["input"], row["output"])
    columns = {"input": "instances.0.input", "output": "instances.0.output"}
    with (FIXTURES / "tasks.jsonl").open(encoding="utf-8") as stream:
        tasks = [json.loads(line) for line in stream]
    assert detect_format(tasks[0].keys(), tasks[0], columns=columns) == "instruction"
    for row in tasks:
        user, assistant = to_conversation(row, "instruction", columns).messages
        assert (user.input, assistant.content) == (row["instances"][0]["input"], row["instances"][0]["output"])
