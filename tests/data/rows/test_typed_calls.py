"""Calls and results in every way that data sets spell them become the same messages."""

from typing import Any

import pytest

from alignkit.config import TemplateConfig
from alignkit.data.encode.masking import EncodeRules, RowRefused, encode
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.conversation import Message
from alignkit.data.rows.formats import to_conversation
from alignkit.data.rows.values import RowError
from families import family_tokenizer

ADD, SUB = '{"name": "add", "arguments": {"a": 1}}', '{"name": "sub", "arguments": {"b": 2}}'
CALLS = tuple(
    {"type": "function", "function": {"name": name, "arguments": arguments}}
    for name, arguments in (("add", {"a": 1}), ("sub", {"b": 2}))
)
ASKED, SAID = Message("user", "Hi"), Message("assistant", "Ho")


def read(*turns: tuple[str, str], key: str = "from") -> tuple[Message, ...]:
    words = {"from": "value", "role": "content"}[key]
    return to_conversation({"messages": [{key: role, words: text} for role, text in turns]}, "messages", {}).messages


@pytest.mark.parametrize("result", ["tool", "tool_response", "observation", "ipython", "function"])
@pytest.mark.parametrize("call", ["function_call", "tool_call"])
@pytest.mark.parametrize("key", ["from", "role"])
def test_roles_that_are_calls_and_results(key: str, call: str, result: str) -> None:
    assert read(("user", "Hi"), (call, ADD), (result, "3"), ("assistant", "Ho"), key=key) == (
        ASKED,
        Message("assistant", "", tool_calls=CALLS[:1]),
        Message("tool", "3", name="add"),
        SAID,
    )


def test_words_right_before_a_call_and_calls_right_behind_one_are_one_turn() -> None:
    turns = [("human", "Hi"), ("gpt", "Let me see."), ("function_call", ADD), ("function_call", SUB)]
    turns += [("observation", "3"), ("observation", "4"), ("gpt", "Ho")]
    assert read(*turns) == (
        ASKED,
        Message("assistant", "Let me see.", tool_calls=CALLS),
        Message("tool", "3", name="add"),
        Message("tool", "4", name="sub"),
        SAID,
    )
    with pytest.raises(RowError, match="two assistant messages in a row"):
        read(("human", "Hi"), ("function_call", ADD), ("gpt", "Ho"))


def test_calls_and_results_that_are_typed_with_their_tags() -> None:
    typed = f"Let me see.\n<tool_call>\n{ADD}\n</tool_call>\n<tool_call>{SUB}</tool_call>\n"
    answers = "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    assert read(("human", "Hi"), ("gpt", typed), ("tool", answers), ("gpt", "Ho")) == (
        ASKED,
        Message("assistant", "Let me see.", tool_calls=CALLS),
        Message("tool", "3", name="add"),
        Message("tool", "4", name="sub"),
        SAID,
    )


def test_tags_stay_words_where_no_result_follows_and_within_words() -> None:
    typed = f"<tool_call>{ADD}</tool_call>"
    assert read(("human", "Hi"), ("gpt", typed)) == (ASKED, Message("assistant", typed))
    within = "One writes <tool_call>…</tool_call>, you see."
    turns = [("human", "Hi"), ("function_call", ADD), ("observation", "3"), ("gpt", within)]
    assert read(*turns)[-1] == Message("assistant", within)
    with pytest.raises(RowError, match="'<tool_call>' is no JSON"):
        read(("human", "Hi"), ("gpt", "<tool_call>add(1)</tool_call>"), ("tool", "3"), ("gpt", "Ho"))


LATER: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": "And kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
    {"role": "system", "content": "Now be loud."},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "HA"},
]


def test_a_later_system_message_stands_where_the_template_puts_it_or_the_template_refuses_it() -> None:
    conversation = to_conversation({"messages": LATER}, "messages", {})
    tokenizer = family_tokenizer("qwen2_5")
    (row,) = encode(conversation, load_template(TemplateConfig(name="native"), tokenizer), tokenizer, EncodeRules())
    messages = [{**message, "role": message["role"].replace("developer", "system")} for message in LATER]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(row.input_ids) == text.rstrip()
    assert text.count("<|im_start|>system\n") == 3
    assert tokenizer.decode([label for label in row.labels if label != -100]) == "Ho<|im_end|>HA<|im_end|>"
    tokenizer = family_tokenizer("qwen3_5_think")
    with pytest.raises(RowRefused, match="System message must be at the beginning"):
        encode(conversation, load_template(TemplateConfig(name="native"), tokenizer), tokenizer, EncodeRules())


@pytest.mark.parametrize("column", ["images", "image", "audios", "videos"])
def test_plain_text_with_pictures_is_refused(column: str) -> None:
    assert to_conversation({"text": "a", column: []}, "text", {}).plain
    with pytest.raises(RowError, match=f"not supported: '{column}'"):
        to_conversation({"text": "a <image>", column: ["a.png"]}, "text", {})
