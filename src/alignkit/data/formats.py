"""What the columns of a row mean: from a row as it was read to a conversation."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from alignkit.data.conversation import Conversation, Message
from alignkit.data.turns import RowError, check_order, checked_text, full_text, kind, read_turns, spoken
from alignkit.errors import ConfigError, DataError, did_you_mean

__all__ = [
    "FIELDS",
    "RowError",
    "check_columns",
    "check_format",
    "detect_format",
    "load_function",
    "to_conversation",
    "to_prompt",
]

# Per format, the fields a row must have and those it may have. `prompt` takes either of its two shapes.
FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "instruction": (("instruction", "output"), ("input",)),
    "prompt_completion": (("prompt", "completion"), ()),
    "messages": (("messages",), ()),
    "sharegpt": (("conversations",), ("system",)),
    "text": (("text",), ()),
    "prompt": (("prompt",), ("instruction", "input")),
}

_MISSING = object()


def check_format(format: str, columns: Mapping[str, Any], *, setting: str) -> list[str]:
    """One line for each mistake in a format's name and its column mapping; empty where all is well.

    Args:
        format: `auto`, a name from `FIELDS`, or `module:function`.
        columns: field to column.
        setting: where the two were set, such as `data` or `data.path[1]`.
    """
    if ":" in format:
        return [f"{setting}.columns: {format} sees whole rows, so columns have no effect"] if columns else []
    if format != "auto" and format not in FIELDS:
        known = ["auto", *FIELDS]
        guess = did_you_mean(format, known)
        return [f"{setting}.format: unknown format '{format}'{guess or '; one of ' + ', '.join(known)}"]
    chosen = FIELDS if format == "auto" else [format]
    fields = {field for name in chosen for group in FIELDS[name] for field in group}
    problems = []
    for field, column in columns.items():
        if field not in fields:
            guess = did_you_mean(str(field), fields) or f"; one of {', '.join(sorted(fields))}"
            problems.append(f"{setting}.columns: no format has a field '{field}'{guess}")
        elif not isinstance(column, str) or not column:
            problems.append(f"{setting}.columns.{field} is {kind(column)}: it must be the name of a column")
    return problems


def check_columns(found: Collection[str], columns: Mapping[str, str]) -> None:
    """Refuse a column mapping that points at columns the first rows do not have.

    Args:
        found: the columns of the first rows.
        columns: field to column, or to a path such as `instances.0.input`.

    Raises:
        DataError: one line for each column that is not there.
    """
    missing = [(f, c) for f, c in columns.items() if c not in found and c.partition(".")[0] not in found]
    if missing:
        raise DataError(
            *(
                f"data.columns.{field}: there is no column '{column}'"
                + (did_you_mean(column.partition(".")[0], found) or f"; the columns are {', '.join(sorted(found))}")
                for field, column in missing
            )
        )


def detect_format(
    found: Collection[str], first_row: Any, *, columns: Mapping[str, str] | None = None, responses: bool = True
) -> str:
    """The one format that fits the columns.

    Args:
        found: the columns of the first rows.
        first_row: shows in the refusal what each column holds.
        columns: field to column; a mapped field counts as present, its column as used up.
        responses: rows must hold a response; else prompts alone will do (format `prompt`).

    Returns:
        A name from `FIELDS`.

    Raises:
        DataError: no format or more than one fits, or the rows are preference pairs.
    """
    columns = columns or {}
    check_columns(found, columns)
    used = {name for column in columns.values() for name in (column, column.partition(".")[0])}
    present = (set(found) - used) | set(columns)
    if responses and {"chosen", "rejected"} <= present:
        raise DataError("data.path: these are preference pairs (chosen, rejected): use alignkit reward or alignkit dpo")
    with_response = [name for name in FIELDS if name != "prompt"]
    fitting = [name for name in with_response if present.issuperset(FIELDS[name][0])]
    if not fitting and not responses and present & {"prompt", "instruction"}:
        return "prompt"
    if len(fitting) == 1:
        return fitting[0]
    row = first_row if isinstance(first_row, dict) else {}
    seen = ", ".join(f"{name} ({kind(row[name])})" if name in row else name for name in sorted(found)) or "none"
    needs = "; ".join(f"{name} needs {' and '.join(FIELDS[name][0])}" for name in fitting or with_response)
    verdict = f"{' and '.join(fitting)} fit" if fitting else "no format fits"
    way_out = "choose one with data.format" if fitting else "name yours with data.columns={field: column}"
    raise DataError(f"data.format: {verdict} the columns {seen}; {needs}; {way_out}")


def to_conversation(row: Any, format: str, columns: Mapping[str, str]) -> Conversation:
    """A row to train on.

    Args:
        row: as it was read.
        format: a name from `FIELDS`, or `module:function`; not `auto`.
        columns: field to column, or to a path such as `instances.0.input`.

    Returns:
        A conversation with at least one assistant message (for `text`: the text, marked plain).

    Raises:
        RowError: the reason, without the row's place.
        ConfigError: a function of the user's that cannot be loaded.
    """
    messages = _messages(row, format, columns, response=True)
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no assistant message")
    return Conversation(tuple(messages), plain=format == "text")


def to_prompt(row: Any, format: str, columns: Mapping[str, str]) -> Conversation:
    """A row to answer: as `to_conversation`, but it needs no response, and a last one is left off unread.

    Returns:
        A conversation that ends with the user (or with what a tool returned).

    Raises:
        RowError: the reason, without the row's place.
        ConfigError: a function of the user's that cannot be loaded.
    """
    if format == "text":
        raise RowError("plain text holds no prompt")
    return Conversation(tuple(_messages(row, format, columns, response=False)))


@lru_cache
def load_function(spec: str, setting: str = "data.format") -> Callable[..., Any]:
    """A function of the user's own, such as a format.

    Args:
        spec: `module:function` or `file.py:function`; a module may be a file in the current folder.
        setting: where it was named, for the messages.

    Raises:
        ConfigError: there is no such module, file or function, or importing it fails.
    """
    place, _, name = spec.rpartition(":")
    if not place.strip(".") or not name.isidentifier():
        raise ConfigError(f"{setting}: '{spec}' must be module:function or file.py:function")
    path = Path(place) if place.endswith(".py") else Path(*place.split(".")).with_suffix(".py")
    if place.endswith(".py") and not path.is_file():
        raise ConfigError(f"{setting}: {spec}: there is no file {place}")
    try:
        module = _load_file(path) if path.is_file() else importlib.import_module(place)
    except Exception as error:  # the user's code may fail in any way, and it is theirs to mend
        raise ConfigError(f"{setting}: {spec} cannot be imported: {type(error).__name__}: {error}") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        guess = did_you_mean(name, [key for key, value in vars(module).items() if callable(value)])
        raise ConfigError(f"{setting}: {place} has no function '{name}'{guess}")
    return function


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"alignkit_format_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks up the module it was written in
    spec.loader.exec_module(module)
    return module


def _messages(row: Any, format: str, columns: Mapping[str, str], *, response: bool) -> list[Message]:
    """The messages of a row, in an order that a template can render; without `response` the last answer is left off."""
    if not isinstance(row, dict):
        raise RowError("not an object")
    if ":" in format:
        return _from_function(row, format, response=response)
    if format == "text":
        return [Message("assistant", full_text(*_field(row, "text", columns)))]
    if format == "sharegpt":
        messages = read_turns(*_field(row, "conversations", columns), response=response)
        messages.insert(0, Message("system", _optional(row, "system", columns)))
    elif format == "messages":
        messages = read_turns(*_field(row, "messages", columns), response=response)
    elif format == "prompt_completion":
        messages = spoken("user", *_field(row, "prompt", columns), response=response)
        messages += spoken("assistant", *_field(row, "completion", columns)) if response else []
    elif format == "prompt" and (_has(row, "prompt", columns) or not _has(row, "instruction", columns)):
        messages = spoken("user", *_field(row, "prompt", columns), response=response)
    else:
        instruction = full_text(*_field(row, "instruction", columns))
        messages = [Message("user", instruction, input=_optional(row, "input", columns))]
        if response and format == "instruction":
            messages.append(Message("assistant", full_text(*_field(row, "output", columns))))
    messages = [m for m in messages if m.role != "system" or m.content.strip()]
    check_order(messages)
    return messages


def _from_function(row: dict[str, Any], spec: str, *, response: bool) -> list[Message]:
    function = load_function(spec)
    try:
        result = function(row)
    except Exception as error:  # as above: any failure of the user's function is a mistake in their row or code
        raise RowError(f"{spec} raised {type(error).__name__}: {error}") from error
    if not isinstance(result, dict) or not {"messages", "prompt"} & result.keys():
        raise RowError(f"{spec} returned {kind(result)}: it must return {{'messages'}} or {{'prompt', 'completion'}}")
    try:
        return _messages(result, "messages" if "messages" in result else "prompt_completion", {}, response=response)
    except RowError as error:
        raise RowError(f"{spec} returned a row that is wrong: {error}") from error


def _field(row: dict[str, Any], field: str, columns: Mapping[str, str]) -> tuple[Any, str]:
    """A field's value and the column it came from."""
    column = columns.get(field, field)
    value = _look(row, column)
    if value is _MISSING:
        top = column.partition(".")[0]
        raise RowError(f"no field '{column}'{'' if top in row else did_you_mean(top, map(str, row))}")
    return value, column


def _has(row: dict[str, Any], field: str, columns: Mapping[str, str]) -> bool:
    return _look(row, columns.get(field, field)) is not _MISSING


def _optional(row: dict[str, Any], field: str, columns: Mapping[str, str]) -> str:
    """A field's text, empty where it is absent or null: columnar files fill gaps with null."""
    column = columns.get(field, field)
    value = _look(row, column)
    return "" if value is None or value is _MISSING else checked_text(value, column)


def _look(row: dict[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value
