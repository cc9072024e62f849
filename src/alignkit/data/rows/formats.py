"""What the columns of a row mean: from a row as it was read to a conversation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from alignkit.data.rows.columns import (
    check_columns,
    describe_columns,
    field_value,
    fields_of,
    has_field,
    look_up,
    optional_text,
    used_up,
)
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.keys import FIELDS, PAIR_FIELDS, Fields, Use, spellings
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.own_format import read_converted
from alignkit.data.rows.surroundings import check_label, check_text, read_surroundings
from alignkit.data.rows.turns import messages_from, read_turns
from alignkit.data.rows.values import RowError, checked_text, describe_type, full_text, given
from alignkit.errors import DataError, did_you_mean

__all__ = [
    "FIELDS",
    "OF_RESPONSES",
    "PAIR_FIELDS",
    "Fields",
    "RowError",
    "check_columns",
    "check_format",
    "detect_format",
    "to_conversation",
    "to_prompt",
]

OF_RESPONSES = (Use.response, Use.thought, Use.label)  # what a prompt has no use for
_REASONING = spellings(Use.thought)


def check_format(format: str, columns: Mapping[str, Any], *, setting: str, fields: Fields | None = None) -> list[str]:
    """List the mistakes in a format's name and its column mapping, one line each; empty where all is well.

    Args:
        format: `auto`, a name from `fields`, or `module:function`.
        columns: field to column.
        setting: where the two were set, such as `data` or `data.path[1]`.
        fields: of the formats there are; None takes `FIELDS`.
    """
    fields = fields or FIELDS
    if ":" in format:
        return [f"{setting}.columns: {format} sees whole rows, so columns have no effect"] if columns else []
    if format != "auto" and format not in fields:
        known = ["auto", *fields]
        if format in {**FIELDS, **PAIR_FIELDS}:
            are = "pairs, not single responses" if format in PAIR_FIELDS else "single responses, not pairs"
            return [f"{setting}.format={format} is for {are}; one of {', '.join(known)}"]
        guess = did_you_mean(format, known)
        return [f"{setting}.format: unknown format '{format}'{guess or '; one of ' + ', '.join(known)}"]
    chosen = fields if format == "auto" else [format]
    names = {field for name in chosen for group in fields[name] for field in group}
    problems = []
    for field, column in columns.items():
        if field not in names:
            turned = f"; did you mean {{{column}: {field}}}, from the field to your column?" if column in names else ""
            guess = turned or did_you_mean(str(field), names) or f"; one of {', '.join(sorted(names))}"
            problems.append(f"{setting}.columns: no format has a field '{field}'{guess}")
        elif not isinstance(column, str) or not column:
            problems.append(f"{setting}.columns.{field} is {describe_type(column)}: it must be the name of a column")
    return problems


def detect_format(
    found: Collection[str], first_row: Any, *, columns: Mapping[str, str] | None = None, responses: bool = True
) -> str:
    """Return the one format that fits the columns.

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
    present = fields_of(found, columns or {})
    if responses and {"chosen", "rejected"} <= present:
        raise DataError("data.path: these are preference pairs (chosen, rejected): use alignkit reward or alignkit dpo")
    with_response = [name for name in FIELDS if name != "prompt"]
    fitting = [name for name in with_response if present.issuperset(FIELDS[name][0])]
    if not fitting and not responses and present & {"prompt", "instruction"}:
        return "prompt"
    if len(fitting) == 1:
        return fitting[0]
    seen = describe_columns(found, first_row)
    needs = "; ".join(f"{name} needs {' and '.join(FIELDS[name][0])}" for name in fitting or with_response)
    verdict = f"{' and '.join(fitting)} fit" if fitting else "no format fits"
    way_out = "choose one with data.format" if fitting else "name yours with data.columns={field: column}"
    raise DataError(f"data.format: {verdict} the columns {seen}; {needs}; {way_out}")


def to_conversation(
    row: Any, format: str, columns: Mapping[str, str], seen: KeysSeen | None = None, *, to_train: bool = True
) -> Conversation:
    """Turn a row into a conversation that has a response.

    Args:
        row: as it was read.
        format: a name from `FIELDS`, or `module:function`; not `auto`.
        columns: field to column, or to a path such as `instances.0.input`.
        seen: is told the row's keys.
        to_train: the response is to be learned; else its label, which may call it bad, is not read.

    Returns:
        A conversation with at least one assistant message (for `text`: the text, marked plain).

    Raises:
        RowUnusable: the row's label calls its response bad.
        RowError: the reason, without the row's place.
        ConfigError: a function of the user's that cannot be loaded.
    """
    conversation = _conversation(row, format, columns, seen, unread=() if to_train else (Use.label,))
    if "assistant" not in [message.role for message in conversation.messages]:
        raise RowError("no assistant message")
    return conversation


def to_prompt(row: Any, format: str, columns: Mapping[str, str], seen: KeysSeen | None = None) -> Conversation:
    """Turn a row into a prompt: as `to_conversation`, but it needs no response, and a last one is left off unread.

    Returns:
        A conversation that ends with the user (or with what a tool returned).

    Raises:
        RowError: the reason, without the row's place.
        ConfigError: a function of the user's that cannot be loaded.
    """
    if format == "text":
        raise RowError("plain text holds no prompt")
    return _conversation(row, format, columns, seen, unread=OF_RESPONSES)


def _conversation(
    row: Any, format: str, columns: Mapping[str, str], seen: KeysSeen | None, *, unread: Collection[Use]
) -> Conversation:
    """Read a row but for what is `unread`; a response that is not read is left off."""
    response = Use.response not in unread
    if not isinstance(row, dict):
        raise RowError("not an object")
    if ":" in format:
        returns = "{'messages'} or {'prompt', 'completion'}"
        return read_converted(row, format, converted_readers(seen, unread=unread), returns)
    if seen is not None:
        seen.add(row, format, columns, unread=unread)
    if format == "text":
        check_text(row, columns)
        return Conversation((Message("assistant", full_text(*field_value(row, "text", columns))),), plain=True)
    messages = _messages(row, format, columns, response=response)
    conversation = read_surroundings(row, columns).around(messages)
    if Use.label not in unread:
        check_label(row, columns)
    return conversation


def converted_readers(
    seen: KeysSeen | None, *, unread: Collection[Use]
) -> dict[tuple[str, ...], Callable[[dict[str, Any]], Conversation]]:
    """Return how a row that a function made is read, by the keys it must have; see `read_converted`."""
    formats = {("messages",): "messages", ("prompt",): "prompt_completion"}
    return {
        keys: partial(_conversation, format=name, columns={}, seen=seen, unread=unread)
        for keys, name in formats.items()
    }


def _messages(row: dict[str, Any], format: str, columns: Mapping[str, str], *, response: bool) -> list[Message]:
    """Read the turns of a row in its format's own columns."""
    if format in ("sharegpt", "messages"):
        column = "conversations" if format == "sharegpt" else "messages"
        return read_turns(*field_value(row, column, columns), response=response)
    if format == "prompt_completion":
        messages = messages_from("user", *field_value(row, "prompt", columns), response=response)
        return messages + (_response(row, "completion", columns) if response else [])
    if format == "prompt" and (has_field(row, "prompt", columns) or not has_field(row, "instruction", columns)):
        return messages_from("user", *field_value(row, "prompt", columns), response=response)
    instruction = full_text(*field_value(row, "instruction", columns))
    messages = [Message("user", instruction, input=optional_text(row, "input", columns))]
    if response and format == "instruction":
        messages += _response(row, "output", columns)
    return messages


def _response(row: dict[str, Any], field: str, columns: Mapping[str, str]) -> list[Message]:
    """Read a response, and its reasoning where that has a column of its own."""
    value, column = field_value(row, field, columns)
    if field == "output":
        full_text(value, column)
    messages = messages_from("assistant", value, column)
    if not (reasoning := _reasoning(row, columns)):
        return messages
    if isinstance(value, list):
        raise RowError("the row's reasoning stands beside a list of messages: give it in the message it belongs to")
    return [replace(messages[0], reasoning=reasoning)]


def _reasoning(row: dict[str, Any], columns: Mapping[str, str]) -> str:
    """Read the column of the reasoning; some data sets have a switch of that name, which is no thought."""
    if "reasoning" not in columns and row.keys().isdisjoint(_REASONING):
        return ""
    taken = used_up(columns)
    found = {name: row.get(name) for name in _REASONING if name not in taken}
    if "reasoning" in columns:
        found["reasoning"] = look_up(row, columns["reasoning"])
    value = given({name: value for name, value in found.items() if not _is_switch(value)}, _REASONING)
    return "" if value is None else checked_text(value, "reasoning").strip()


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool) or str(value).strip().lower() in ("on", "off")
