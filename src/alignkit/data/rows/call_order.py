"""Whether calls, results and tools of a conversation belong together."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.data.rows.conversation import Message
from alignkit.data.rows.tool_calls import name_of
from alignkit.data.rows.tools import Tool
from alignkit.data.rows.tools import name_of as tool_name
from alignkit.data.rows.values import RowError

UNDESCRIBED = "rows with calls and no tools"


def check_calls(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[str, ...]:
    """Refuse a call of a tool that the row's tools do not describe, and a result that answers no call.

    Returns:
        What is to be counted: that there are calls and no tools.

    Raises:
        RowError: what does not belong together first.
    """
    if not [message for message in messages if message.tool_calls or message.role == "tool"]:
        return ()
    described = {tool_name(tool) for tool in tools}
    ids: set[str] = set()
    num_open = 0
    for message in messages:
        if message.role == "tool":
            if message.tool_call_id and message.tool_call_id not in ids:
                raise RowError("a tool's result has a tool_call_id that no call has")
            if not num_open:
                raise RowError("a tool's result without a call")
            num_open -= 1
            continue
        num_open = len(message.tool_calls)
        for call in message.tool_calls:
            ids.add(str(call.get("id", "")))
            if described and name_of(call) not in described:
                raise RowError(f"a call of '{name_of(call)}', which no tool of the row describes")
    return () if tools else (UNDESCRIBED,)
