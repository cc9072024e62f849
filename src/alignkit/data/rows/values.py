"""What a value of a row may be, and the words for one that is not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from alignkit.errors import DataError

LONE_SURROGATE = "half a character (a lone surrogate)"


class RowError(DataError):
    """One row is wrong. The text is a short reason, the same for the same mistake so that they can be counted."""


class RowUnusable(RowError):
    """One row can be read but not used: it is dropped with this reason and counted, never malformed."""


def checked_text(value: Any, name: str) -> str:
    """Return the value, or raise a `RowError` unless it is text that has a UTF-8 form."""
    if not isinstance(value, str):
        raise RowError(misfit(value, name, "text"))
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RowError(f"'{name}' holds {LONE_SURROGATE}") from None
    return value


def full_text(value: Any, name: str) -> str:
    """Return the value as `checked_text` does; white space alone is refused, too."""
    text = checked_text(value, name)
    if not text.strip():
        raise RowError(f"'{name}' is empty")
    return text


def checked_json(value: Any, name: str) -> Any:
    """Return the value, or what the JSON text in its place holds: columnar files keep nested data as text.

    Raises:
        RowError: the text is no JSON, or holds half a character.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(f"'{name}' is no JSON") from None
    if value.__class__ in (list, dict):
        checked_text(json.dumps(value, ensure_ascii=False, default=str), name)
    return value


def listed(value: Any) -> Any:
    """Return a list that a columnar file keeps as JSON text; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(RowError):
            return checked_json(value, "")
    return value


def given(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return what a row or a message has under one of several spellings of a name; None where that is nothing.

    Raises:
        RowError: two of the spellings hold different things.
    """
    found = [(name, value) for name in names if not is_nothing(value := row.get(name))]
    for name, value in found[1:]:
        if value != found[0][1]:
            raise RowError(f"'{found[0][0]}' and '{name}' differ")
    return found[0][1] if found else None


def is_nothing(value: Any) -> bool:
    """Tell whether a key says nothing: data sets fill gaps with null, or with what is empty."""
    return value in (None, "", [], (), {})


def misfit(value: Any, name: str, wanted: str) -> str:
    """Say that a value is not what belongs there."""
    return f"'{name}' is null" if value is None else f"'{name}' is {describe_type(value)} where {wanted} belongs"


def describe_type(value: Any) -> str:
    """Describe what a value is, in words that fit after "is"."""
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")
