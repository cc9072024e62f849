"""Tools that a row describes: from every spelling to OpenAI's."""

from __future__ import annotations

from typing import Any

from alignkit.data.rows.values import RowError, checked_json, is_nothing, misfit

Tool = dict[str, Any]


def read_tools(value: Any, name: str = "tools") -> tuple[Tool, ...]:
    """Read a row's tools: a list, or its JSON text, of `{type, function: {name, …}}` or of bare `{name, …}`.

    Raises:
        RowError: no list of objects, or a tool without a name.
    """
    tools = [] if is_nothing(value) else checked_json(value, name)
    if not isinstance(tools, list):
        raise RowError(misfit(tools, name, "a list"))
    return tuple(_tool(tool, name) for tool in tools)


def _tool(value: Any, name: str) -> Tool:
    tool = checked_json(value, name)
    if not isinstance(tool, dict):
        raise RowError(misfit(tool, name, "a list of objects"))
    tool = {key: part for key, part in tool.items() if part is not None}
    if not isinstance(tool.get("function"), dict):  # bare, or flat with its type beside the name
        tool = {"type": "function", "function": {key: part for key, part in tool.items() if key != "type"}}
    if not isinstance(tool["function"].get("name"), str) or not tool["function"]["name"].strip():
        raise RowError("a tool has no name")
    return {"type": "function", **tool}


def name_of(tool: Tool) -> str:
    """Return the function that a tool is."""
    return str(tool["function"]["name"])
