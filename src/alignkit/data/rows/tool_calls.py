"""Calls of tools: from every spelling to OpenAI's."""

from __future__ import annotations

from typing import Any

from alignkit.data.rows.values import RowError, checked_json, checked_text, misfit

Call = dict[str, Any]


def read_calls(value: Any, name: str) -> tuple[Call, ...]:
    """Read one call or a list of parallel ones, as objects or as JSON text.

    Args:
        value: each `{function: {name, arguments}}` or the bare `{name, arguments}`.
        name: the key it came from.

    Returns:
        Calls `{type, function: {name, arguments}}`, with whatever else the data gives them but nulls; the arguments are
        an object, or the JSON text of one as the data has it.

    Raises:
        RowError: no calls, a call without a name, or arguments that are no object.
    """
    calls = checked_json(value, name)
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowError(misfit(calls, name, "a list of objects"))
    return tuple(map(_call, calls))


def _call(call: Call) -> Call:
    call = {key: value for key, value in call.items() if value is not None}
    function = call.pop("function", None)
    if not isinstance(function, dict):
        name = function if isinstance(function, str) else call.pop("name", None)
        function = {"name": name, "arguments": call.pop("arguments", call.pop("parameters", None))}
    if not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RowError("a call has no name")
    return {"type": "function", **call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(value: Any) -> dict[str, Any] | str:
    if value is None or value == "":
        return {}
    arguments = checked_json(value, "arguments")
    if not isinstance(arguments, dict):
        raise RowError(misfit(arguments, "arguments", "an object"))
    return value if isinstance(value, str) else arguments


def name_of(call: Call) -> str:
    """Return the function that is called."""
    return checked_text(call["function"]["name"], "name")
