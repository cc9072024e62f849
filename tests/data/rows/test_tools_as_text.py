from __future__ import annotations

from typing import Any

from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.tools_as_text import tools_as_text

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
HOW = """Tools, one a line:
{"name": "add", "parameters": {"type": "object"}}
To call a tool, write a line such as
Call: {"name": "…", "arguments": {…}}
Its result comes back in a line that begins with "Result"."""


def call(arguments: Any) -> dict[str, Any]:
    return {"type": "function", "id": "c1", "function": {"name": "add", "arguments": arguments}}


def test_tools_calls_and_results_become_text() -> None:
    conversation = Conversation(
        (
            Message("user", "1 + 2, 3 + 4?"),
            Message("assistant", "Let me see.", tool_calls=(call({"a": 1}), call('{"a":"é"}')), reasoning="Hm."),
            Message("tool", "3", name="add", tool_call_id="c1"),
            Message("tool", "7"),
            Message("assistant", "3 and 7."),
        ),
        tools=(ADD,),
        template_kwargs={"x": 1},
        notes=("n",),
    )
    assert tools_as_text(conversation) == Conversation(
        (
            Message("system", HOW),
            Message("user", "1 + 2, 3 + 4?"),
            Message(
                "assistant",
                'Let me see.\nCall: {"name": "add", "arguments": {"a": 1}}\n'
                'Call: {"name": "add", "arguments": {"a": "é"}}',
                reasoning="Hm.",
            ),
            Message("user", "Result of add: 3\nResult: 7"),
            Message("assistant", "3 and 7."),
        ),
        template_kwargs={"x": 1},
        notes=("n",),
    )


def test_the_rows_own_system_message_comes_first() -> None:
    for role in ("system", "developer"):
        messages = (Message(role, "Be brief."), Message("user", "Hi"), Message("assistant", "Ho"))
        written = tools_as_text(Conversation(messages, tools=(ADD,)))
        assert written.messages == (Message(role, f"Be brief.\n\n{HOW}"), *messages[1:])


def test_flags_stay_and_a_merged_result_is_trained_only_where_all_of_it_is() -> None:
    for flags, merged in (((None, None), None), ((True, True), True), ((True, False), False), ((None, True), False)):
        messages = (
            Message("user", "?"),
            Message("assistant", "", tool_calls=(call({}), call({})), train=False),
            *(Message("tool", "1", train=flag) for flag in flags),
        )
        _, asked, answered = tools_as_text(Conversation(messages)).messages
        assert asked == Message("assistant", "\n".join(['Call: {"name": "add", "arguments": {}}'] * 2), train=False)
        assert answered == Message("user", "Result: 1\nResult: 1", train=merged)


def test_a_conversation_without_tools_stays_as_it_is() -> None:
    conversation = Conversation((Message("user", "Hi"), Message("assistant", "Ho")))
    assert tools_as_text(conversation) == conversation
