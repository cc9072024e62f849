"""Whatever is said: each assistant turn is trained once, after what a server feeds, and nothing that others say is."""

import re
from collections import Counter
from functools import cache
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, encode
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.rows.conversation import Conversation, Message
from families import TOOLS, called, family_tokenizer
from served import served, stretches

RULES = EncodeRules.of(DataConfig())
# These have a place for reasoning, tools and calls, so that nothing is refused; gpt-oss for one call at a time.
FAMILIES = "gemma4_v5 glm4moe gptoss lfm2_2_5_v2 muse_glimmer nemotron_3_nano qwen3 qwen3_5_think"


@cache
def loaded(name: str) -> Template:
    return load_template(TemplateConfig(name="native"), family_tokenizer(name))


@st.composite
def conversations(draw: st.DrawFn, max_calls: int) -> Conversation:
    """Up to three users, with up to two rounds of calls before each answer; every text has a word of its own."""
    numbers, around = count(1), st.text("ab .,\n\"'{}é", max_size=6)

    def text() -> str:
        return f"{draw(around)}w{next(numbers)}w{draw(around)}"

    def assistant(content: str, num_calls: int = 0) -> Message:
        calls = tuple(called(text(), f"call_{i}") for i in range(num_calls))
        return Message("assistant", content, tool_calls=calls, reasoning=text() if draw(st.booleans()) else "")

    messages = [Message("system", text())] if draw(st.booleans()) else []
    for num_rounds in draw(st.lists(st.integers(0, 2), min_size=1, max_size=3)):
        messages.append(Message("user", text()))
        for _ in range(num_rounds):
            messages.append(assistant("", draw(st.integers(1, max_calls))))
            messages += [
                Message("tool", text(), name="get_weather", tool_call_id=call["id"]) for call in messages[-1].tool_calls
            ]
        messages.append(assistant(text()))
    return Conversation(tuple(messages), tools=TOOLS)


def own_words(text: str) -> Counter[str]:
    return Counter(re.findall(r"w\d+w", text))


@pytest.mark.parametrize("name", FAMILIES.split())
@settings(max_examples=25)
@given(data=st.data())
def test_each_assistant_turn_is_trained_once_after_the_served_prompt(name: str, data: st.DataObject) -> None:
    conversation = data.draw(conversations(max_calls=1 if name == "gptoss" else 2))
    tokenizer, template = family_tokenizer(name), loaded(name)
    parts = encode(conversation, template, tokenizer, RULES)
    trained = [
        (part.input_ids[:start], part.input_ids[start:stop]) for part in parts for start, stop in stretches(part)
    ]

    turns = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    prompts = [served(tokenizer, conversation, index, add_generation_prompt=True) for index in turns]
    assert sorted(prompt for prompt, _ in trained) == sorted(prompts)
    assert all(ids[-1] in template.stop_ids and not {*ids[:-1]} & {*template.stop_ids} for _, ids in trained)
    said = "".join(str(conversation.messages[index]) for index in turns)
    assert own_words("".join(tokenizer.decode(ids) for _, ids in trained)) == own_words(said)
