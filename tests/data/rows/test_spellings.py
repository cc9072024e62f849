"""One conversation, written in the spellings of OpenAI, of ShareGPT and of content parts, reads to the same."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.formats import to_conversation

NAMES = ("add", "find")
TOOLS = tuple({"type": "function", "function": {"name": name, "parameters": {}}} for name in NAMES)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
VALUES = st.none() | st.booleans() | st.integers() | WORDS | st.lists(st.integers(), max_size=2)


@st.composite
def calls(draw: Any) -> dict[str, Any]:
    arguments = draw(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), VALUES, max_size=2))
    return {"type": "function", "function": {"name": draw(st.sampled_from(NAMES)), "arguments": arguments}}


@st.composite
def conversations(draw: Any) -> Conversation:
    messages = [Message("system", draw(WORDS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(WORDS)))
        for _ in range(draw(st.integers(0, 2))):
            called = tuple(draw(st.lists(calls(), min_size=1, max_size=2)))
            messages.append(Message("assistant", "", tool_calls=called))
            messages += [Message("tool", draw(WORDS), name=call["function"]["name"]) for call in called]
        messages.append(Message("assistant", draw(WORDS)))
    return Conversation(tuple(messages), tools=TOOLS)


def openai(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content or None}
    given_ = {"name": message.name, "reasoning_content": message.reasoning, "tool_calls": list(message.tool_calls)}
    return turn | {key: value for key, value in given_.items() if value}


def sharegpt(message: Message) -> dict[str, str]:
    bare = [call["function"] for call in message.tool_calls]
    if bare:
        return {"from": "function_call", "value": json.dumps(bare[0] if len(bare) == 1 else bare)}
    speaker = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}[message.role]
    return {"from": speaker, "value": message.content}


def parts(message: Message) -> dict[str, Any]:
    found: list[dict[str, Any]] = [{"type": "reasoning", "value": message.reasoning}] if message.reasoning else []
    half = len(message.content) // 2
    found += [{"type": "text", "value": text} for text in (message.content[:half], message.content[half:]) if text]
    found += [{"type": "tool_call", "value": json.dumps(call["function"])} for call in message.tool_calls]
    return {"role": message.role, "content": found} | ({"name": message.name} if message.name else {})


@given(conversations())
def test_every_spelling_reads_to_the_same_conversation(conversation: Conversation) -> None:
    bare = json.dumps([tool["function"] for tool in TOOLS])
    spelled = (("messages", openai, list(TOOLS)), ("conversations", sharegpt, bare), ("messages", parts, bare))
    for column, spell, tools in spelled:
        row = {column: [spell(message) for message in conversation.messages], "tools": tools}
        assert to_conversation(row, "sharegpt" if column == "conversations" else "messages", {}) == conversation


@given(conversations(), WORDS)
def test_reasoning_as_a_key_and_as_a_part_is_the_same(conversation: Conversation, thought: str) -> None:
    reasoned = Conversation(
        tuple(
            Message(
                m.role, m.content, tool_calls=m.tool_calls, name=m.name, reasoning=thought * (m.role == "assistant")
            )
            for m in conversation.messages
        ),
        tools=TOOLS,
    )
    for spell in (openai, parts):
        row = {"messages": [spell(message) for message in reasoned.messages], "tools": TOOLS}
        row["tools"] = list(TOOLS)
        assert to_conversation(row, "messages", {}) == reasoned
