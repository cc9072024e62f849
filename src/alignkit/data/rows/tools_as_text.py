"""Tools, calls and results written out as text, for templates that have no form for them.

The system message describes the tools, one a line; the assistant calls one in a line of its own; the results of a call
are the next user turn:

    system     Tools, one a line:
               {"name": "add", "description": "Add two numbers.", "parameters": …}
               To call a tool, write a line such as
               Call: {"name": "…", "arguments": {…}}
               Its result comes back in a line that begins with "Result".
    user       What is 1 + 2?
    assistant  Call: {"name": "add", "arguments": {"a": 1, "b": 2}}
    user       Result of add: 3
    assistant  3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.tool_calls import Call
from alignkit.data.rows.tools import Tool
from alignkit.data.rows.values import checked_json

_HOW = """To call a tool, write a line such as
Call: {"name": "…", "arguments": {…}}
Its result comes back in a line that begins with "Result"."""


def tools_as_text(conversation: Conversation) -> Conversation:
    """Write tools, calls and results as text of the system, the assistant and the user.

    Returns:
        A conversation without tools, calls and tool messages, in which user and assistant alternate as before. A result
        is trained where a user turn would be; results of one turn become one, trained where each of them is.
    """
    messages: list[Message] = []
    for is_result, group in groupby(conversation.messages, lambda message: message.role == "tool"):
        turns = list(group)
        messages += [_results(turns)] if is_result else map(_called, turns)
    if conversation.tools:
        messages = _described(messages, conversation.tools)
    return replace(conversation, messages=tuple(messages), tools=())


def _described(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = "\n".join(["Tools, one a line:", *lines, _HOW])
    if messages[0].role not in ("system", "developer"):
        return [Message("system", text), *messages]
    return [replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:]]


def _called(message: Message) -> Message:
    lines = [line for line in (message.content, *map(_call, message.tool_calls)) if line]
    return replace(message, content="\n".join(lines), tool_calls=()) if message.tool_calls else message


def _call(call: Call) -> str:
    function = call["function"]
    words = {"name": function["name"], "arguments": checked_json(function["arguments"], "arguments")}
    return f"Call: {json.dumps(words, ensure_ascii=False)}"


def _results(results: list[Message]) -> Message:
    flags = {result.train for result in results}
    lines = [f"Result{' of ' if result.name else ''}{result.name}: {result.content}" for result in results]
    return Message("user", "\n".join(lines), train=flags.pop() if len(flags) == 1 else False)
