"""Prompts of rows of every format, preference pairs too: what both sides answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from alignkit.data.rows.columns import fields_of
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.formats import OF_RESPONSES, converted_readers, detect_format, to_prompt
from alignkit.data.rows.keys import FIELDS, PAIR_FIELDS, Fields
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.own_format import read_converted
from alignkit.data.rows.preferences import converted_pair_format, detect_pairs, to_pair_prompt

PROMPT_FIELDS: Fields = {**FIELDS, **PAIR_FIELDS}


def detect_prompts(found: Collection[str], first_row: Any, *, columns: Mapping[str, str] | None = None) -> str:
    """Return the one format that fits the columns, where rows need no response.

    Args:
        found: the columns of the first rows.
        first_row: tells transcripts from responses, and shows in the refusal what each column holds.
        columns: field to column; a mapped field counts as present, its column as used up.

    Returns:
        A name from `PROMPT_FIELDS`.

    Raises:
        DataError: no format or more than one fits.
    """
    if are_pairs(found, columns or {}):
        return detect_pairs(found, first_row, columns=columns)
    return detect_format(found, first_row, columns=columns, responses=False)


def are_pairs(found: Collection[str], columns: Mapping[str, str]) -> bool:
    """Tell whether the columns of the first rows are those of preference pairs."""
    return {"chosen", "rejected"} <= fields_of(found, columns)


def read_prompt(row: Any, format: str, columns: Mapping[str, str], seen: KeysSeen | None = None) -> Conversation:
    """Turn a row of any format into a prompt; a last response is left off unread.

    Args:
        row: as it was read.
        format: a name from `PROMPT_FIELDS`, or `module:function`; not `auto`.
        columns: field to column, or to a path such as `instances.0.input`.
        seen: is told the row's keys.

    Returns:
        A conversation that ends with the user (or with what a tool returned).

    Raises:
        RowError: the reason, without the row's place.
        ConfigError: a function of the user's that cannot be loaded.
    """
    if not isinstance(row, dict) or format in FIELDS:
        return to_prompt(row, format, columns, seen)
    if ":" not in format:
        return to_pair_prompt(row, format, columns, seen)
    readers = {("chosen", "rejected"): lambda made: to_pair_prompt(made, converted_pair_format(made), {}, seen)}
    returns = "{'messages'}, {'prompt'} or {'prompt', 'chosen', 'rejected'}"
    return read_converted(row, format, readers | converted_readers(seen, unread=OF_RESPONSES), returns)
