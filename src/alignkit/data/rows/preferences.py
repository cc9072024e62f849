"""Preference pairs: from a row as it was read to one prompt with a chosen and a rejected response."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignkit.data.rows.columns import describe_columns, field_value, fields_of, has_field
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.keys import FIELDS, PAIR_FIELDS, Use
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.own_format import read_converted
from alignkit.data.rows.row_kind import RowKind
from alignkit.data.rows.surroundings import read_surroundings
from alignkit.data.rows.turns import SYSTEM_ROLES, messages_from, read_turns
from alignkit.data.rows.values import RowError, RowUnusable, describe_type, full_text
from alignkit.errors import DataError

__all__ = ["PAIRS", "PAIR_FIELDS", "Preference", "detect_pairs", "to_preference"]

IDENTICAL = "identical"
PROMPTS_DIFFER = "prompts_differ"

_SIDES = ("chosen", "rejected")
_RESPONSES = ("completion", "response", "output", "answer")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_TRANSCRIPT = "'\\n\\nHuman: … \\n\\nAssistant: …'"


@dataclass(frozen=True, slots=True)
class Preference:
    """Two responses to one prompt, one of them preferred.

    Attributes:
        prompt: ends with the user, or with what a tool returned.
        chosen: the preferred assistant message.
        rejected: the other assistant message, which is not the same.
        margin: by how much the chosen one is better, in the data's own unit; None where the row does not say.
    """

    prompt: Conversation
    chosen: Message
    rejected: Message
    margin: float | None = None

    def sides(self) -> tuple[Conversation, Conversation]:
        """Return the prompt with the chosen response, and with the rejected one."""
        return self.prompt.with_answer(self.chosen), self.prompt.with_answer(self.rejected)

    def with_system(self, words: str) -> Preference:
        """Return the pair with a system message in front of its prompt, unless it has one."""
        return replace(self, prompt=self.prompt.with_system(words))

    def prompt_key(self) -> str:
        """Return what two rows must share to count as the same prompt."""
        return self.sides()[0].prompt_key()

    def beginning_key(self) -> str:
        """Return what two rows must share to count as one conversation (see `Conversation.beginning_key`)."""
        return self.prompt.beginning_key()

    def exchange_chains(self) -> list[list[str]]:
        """Return what was asked and answered, once with each response (see `Conversation.exchange_chains`)."""
        return [chain for side in self.sides() for chain in side.exchange_chains()]


def detect_pairs(found: Collection[str], first_row: Any, *, columns: Mapping[str, str] | None = None) -> str:
    """Return the one pair format that fits the columns and the first row.

    Args:
        found: the columns of the first rows.
        first_row: tells whole transcripts from responses.
        columns: field to column; a mapped field counts as present, its column as used up.

    Returns:
        A name from `PAIR_FIELDS`.

    Raises:
        DataError: the rows are not pairs, or fit no format.
    """
    columns = columns or {}
    present = fields_of(found, columns)
    row = first_row if isinstance(first_row, dict) else {}
    if not present.issuperset(_SIDES):
        raise DataError(_no_pairs(present, found, row))
    if present >= {"prompt", "conversations"}:
        raise DataError(
            "data.format: pairs and sharegpt_pairs fit the columns "
            f"{describe_columns(found, row)}; pairs takes its prompt from prompt, sharegpt_pairs from conversations; "
            "choose one with data.format"
        )
    if "conversations" in present:
        return "sharegpt_pairs"
    texts = [field_value(row, side, columns)[0] for side in _SIDES if has_field(row, side, columns)]
    if any(_is_transcript(text) for text in (*texts, _transcript_prompt(row, columns))):
        return "hh"
    if "prompt" not in present and texts and all(isinstance(text, str) for text in texts):
        raise DataError(
            f"data.format: the columns {describe_columns(found, row)} hold no prompt, and chosen and rejected are no "
            f"transcripts {_TRANSCRIPT} that begin with one; name its column with data.columns.prompt=COLUMN"
        )
    return "pairs"


def _no_pairs(present: set[str], found: Collection[str], row: Mapping[str, Any]) -> str:
    seen = describe_columns(found, row)
    if "label" in present and present & {"prompt", "messages", *_RESPONSES}:
        return (
            f"data.path: the columns {seen} are single responses labelled good or bad; such unpaired preferences are "
            "not supported: pair a good and a bad response to each prompt as prompt, chosen, rejected"
        )
    single = [name for name in FIELDS if present.issuperset(FIELDS[name][0])]
    if single and not present & set(_SIDES):
        what = "prompts alone" if single == ["prompt"] else f"single responses ({single[0]}), as for alignkit sft"
        return (
            f"data.path: the columns {seen} are {what}; pairs need chosen and rejected: name them with "
            "data.columns={chosen: column, rejected: column}"
        )
    missing = " and no ".join(f"'{side}'" for side in _SIDES if side not in present)
    return (
        f"data.format: there is no {missing} among the columns {seen}; name yours with "
        "data.columns={chosen: column, rejected: column}"
    )


def to_preference(row: Any, format: str, columns: Mapping[str, str], seen: KeysSeen | None = None) -> Preference:
    """Turn a row into a preference pair.

    Args:
        row: as it was read.
        format: a name from `PAIR_FIELDS`, or `module:function`; not `auto`.
        columns: field to column, or to a path such as `answers.0.text`.
        seen: is told the row's keys.

    Raises:
        RowUnusable: the prompt differs between the sides, or the sides do not.
        RowError: what is wrong, without the row's place.
        ConfigError: a function of the user's that cannot be loaded.
    """
    if not isinstance(row, dict):
        raise RowError("not an object")
    if ":" in format:
        return read_converted(
            row,
            format,
            {_SIDES: lambda made: to_preference(made, converted_pair_format(made), {}, seen)},
            "{'prompt', 'chosen', 'rejected'}",
        )
    if seen is not None:
        seen.add(row, format, columns)
    chosen, rejected = (_Side.read(row, side, columns) for side in _SIDES)
    if chosen.type != rejected.type:
        raise RowError(
            f"'{chosen.column}' is {chosen.type} and '{rejected.column}' is {rejected.type}: "
            "both sides must be of one type"
        )
    prompts = [_split(row, side, format, columns) for side in (chosen, rejected)]
    (_, better), (_, worse) = prompts
    around = read_surroundings(row, columns).around
    first, second = (around(messages, response=[response]) for messages, response in prompts)
    if first.messages != second.messages:
        raise RowUnusable(PROMPTS_DIFFER)
    if better == worse:
        raise RowUnusable(IDENTICAL)
    notes = tuple(dict.fromkeys(first.notes + second.notes))
    return Preference(replace(first, notes=notes), better, worse, _margin(row, columns))


PAIRS = RowKind(PAIR_FIELDS, detect_pairs, to_preference, fallback="pairs")


def to_pair_prompt(
    row: dict[str, Any], format: str, columns: Mapping[str, str], seen: KeysSeen | None = None
) -> Conversation:
    """Turn a preference pair into its prompt; the rejected response is not read, nor is a chosen one without a prompt.

    Args:
        row: as it was read.
        format: a name from `PAIR_FIELDS`.
        columns: field to column.
        seen: is told the row's keys.

    Raises:
        RowError: what is wrong, without the row's place.
    """
    if seen is not None:
        seen.add(row, format, columns, unread=(Use.rejected, Use.margin))
    around = read_surroundings(row, columns).around
    if format != "hh":
        prompt = _own_prompt(row, format, columns)
        if prompt and not isinstance(field_value(row, "chosen", columns)[0], (list, dict)):
            return around(prompt)
    prompt, response = _split(row, _Side.read(row, "chosen", columns), format, columns)
    return around(prompt, response=[response])


def converted_pair_format(row: Mapping[str, Any]) -> str:
    """Return the format of a pair that a user's function made."""
    is_hh = "prompt" not in row and all(_is_transcript(row[side]) for side in _SIDES)
    return "hh" if is_hh else "pairs"


@dataclass(frozen=True)
class _Side:
    """One side as it stands in the row.

    Attributes:
        column: it came from.
        value: a text that is not empty, or else untouched.
        type: what it is, in words.
        messages: of a turn or a list of them, `train` flags left out; of a text, the one response.
    """

    column: str
    value: Any
    type: str
    messages: tuple[Message, ...]

    @classmethod
    def read(cls, row: dict[str, Any], name: str, columns: Mapping[str, str]) -> _Side:
        value, column = field_value(row, name, columns)
        if not isinstance(value, (list, dict)):
            return cls(column, value, "text", (Message("assistant", full_text(value, column)),))
        try:
            messages = read_turns([value] if isinstance(value, dict) else value, column)
        except RowError as error:
            raise RowError(str(error) if f"'{column}'" in str(error) else f"'{column}': {error}") from None
        if messages[-1].role != "assistant":
            raise RowError(f"'{column}' does not end with the assistant")
        return cls(column, value, describe_type(value), tuple(_unflagged(messages)))


def _unflagged(messages: list[Message]) -> list[Message]:
    """Messages without their `train` flags: of a pair the loss sees the responses, always."""
    return [replace(message, train=None) for message in messages if message.role != "system" or message.content.strip()]


def _own_prompt(row: dict[str, Any], format: str, columns: Mapping[str, str]) -> list[Message]:
    """Read the prompt's own column as messages; none where there is no such column."""
    field = "conversations" if format == "sharegpt_pairs" else "prompt"
    if field == "prompt" and not has_field(row, field, columns):
        return []
    value, column = field_value(row, field, columns)
    if value is None and field == "prompt":  # columnar files fill gaps with null
        return []
    messages = _unflagged(
        read_turns(value, column) if field == "conversations" else messages_from("user", value, column)
    )
    if messages and messages[-1].role == "assistant":
        raise RowError(f"'{column}' ends with the assistant, and a prompt with the user")
    return messages


def _split_side(side: _Side, own_prompt: list[Message]) -> tuple[list[Message], Message]:
    """Split a side into its prompt and its response.

    A side that begins with the user, or with a system message, is a whole conversation and repeats the prompt.

    Raises:
        RowUnusable: the prompt it repeats is not the one in the prompt's own column.
    """
    *before, response = side.messages
    is_whole = bool(before) and before[0].role in (*SYSTEM_ROLES, "user")
    if not is_whole:
        if not own_prompt:
            raise RowError(f"there is no prompt: no column holds one, and '{side.column}' does not begin with one")
        return [*own_prompt, *before], response
    is_same = len(own_prompt) <= len(before) and all(
        _same(message, other) for message, other in zip(own_prompt[::-1], before[::-1], strict=False)
    )
    if not is_same:
        raise RowUnusable(PROMPTS_DIFFER)
    return before, response


def _split(row: dict[str, Any], side: _Side, format: str, columns: Mapping[str, str]) -> tuple[list[Message], Message]:
    """Split a side into its prompt and its response, as its format has them."""
    if format == "hh":
        return _split_transcript(side, _transcript_prompt(row, columns))
    return _split_side(side, _own_prompt(row, format, columns))


def _same(message: Message, other: Message) -> bool:
    return message.role == other.role and message.content.strip() == other.content.strip()


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and bool(re.match(r"\s*(Human|Assistant):", value)) and bool(_SPEAKER.search(value))


def _transcript_prompt(row: dict[str, Any], columns: Mapping[str, str]) -> str:
    """Return a prompt that is a transcript up to the response; empty where the prompt is not one."""
    value = field_value(row, "prompt", columns)[0] if has_field(row, "prompt", columns) else None
    return str(value) if _is_transcript(value) else ""


def _split_transcript(side: _Side, prompt: str) -> tuple[list[Message], Message]:
    """Split a whole transcript, or a prompt's with a response behind it, into prompt and response."""
    if side.type != "text":
        raise RowError(f"'{side.column}' is {side.type} where a transcript {_TRANSCRIPT} belongs")
    text = side.value if _is_transcript(side.value) else prompt + side.value
    text = text if text.startswith("\n\n") else "\n\n" + text.lstrip()
    start, *parts = _SPEAKER.split(text)
    if start.strip() or not parts:
        raise RowError(f"'{side.column}' is no transcript {_TRANSCRIPT}")
    messages = [
        Message(_ROLES[speaker], text.removeprefix(" ")) for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    if messages[-1].role != "assistant":
        raise RowError(f"'{side.column}' does not end with the assistant")
    if any(not message.content.strip() for message in messages):
        raise RowError(f"'{side.column}' has an empty turn")
    return messages[:-1], messages[-1]


def _margin(row: dict[str, Any], columns: Mapping[str, str]) -> float | None:
    if not has_field(row, "margin", columns):
        return None
    value, column = field_value(row, "margin", columns)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"'{column}' is {describe_type(value)} where a finite number belongs")
    return number
