"""Prompts of rows of every format, preference pairs too: what both sides answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from alignkit.config import PromptLength
from alignkit.data.rows.columns import fields_of
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.formats import OF_RESPONSES, converted_readers, detect_format, to_conversation, to_prompt
from alignkit.data.rows.keys import FIELDS, PAIR_FIELDS, Fields
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.own_format import read_converted
from alignkit.data.rows.preferences import converted_pair_format, detect_pairs, to_pair_prompt
from alignkit.data.rows.row_kind import RowKind
from alignkit.data.rows.values import RowError

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


@dataclass(frozen=True, slots=True)
class PromptRow:
    """The prompt of a row, and the row."""

    conversation: Conversation
    columns: Mapping[str, Any]

    def with_system(self, words: str) -> PromptRow:
        return replace(self, conversation=self.conversation.with_system(words))

    def prompt_key(self) -> str:
        return self.conversation.prompt_key()

    def beginning_key(self) -> str:
        return self.conversation.beginning_key()

    def exchange_chains(self) -> list[list[str]]:
        return self.conversation.exchange_chains()


def prompt_kind(length: PromptLength) -> RowKind[PromptRow]:
    """Return what PPO parses rows into; only with a length is plain text a prompt."""
    return RowKind(PROMPT_FIELDS, detect_prompts, partial(_to_prompt_row, length=length), fallback="prompt")


def _to_prompt_row(
    row: Any, format_: str, columns: Mapping[str, str], seen: KeysSeen, *, length: PromptLength
) -> PromptRow:
    if format_ != "text":
        if length.max is not None:
            raise RowError("data.prompt_length cuts plain text (a column 'text'), and this row is a conversation")
        return PromptRow(read_prompt(row, format_, columns, seen), row)
    if length.max is None:
        raise RowError("plain text holds no prompt: data.prompt_length={min: 2, max: 8} asks for its first tokens")
    return PromptRow(to_conversation(row, format_, columns, seen), row)
