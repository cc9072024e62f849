"""Responses of rows of every format, to measure: of a preference pair the chosen one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.formats import detect_format, to_conversation
from alignkit.data.rows.keys import PAIR_FIELDS
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.own_format import read_converted
from alignkit.data.rows.preferences import Preference, converted_pair_format, detect_pairs, to_preference
from alignkit.data.rows.prompts import PROMPT_FIELDS, are_pairs
from alignkit.data.rows.row_kind import RowKind

_RETURNS = "{'messages'}, {'prompt', 'completion'} or {'prompt', 'chosen', 'rejected'}"


def detect_responses(found: Collection[str], first_row: Any, *, columns: Mapping[str, str] | None = None) -> str:
    """Return the one format that fits the columns, as `detect_pairs` or `detect_format`."""
    detect = detect_pairs if are_pairs(found, columns or {}) else detect_format
    return detect(found, first_row, columns=columns)


def to_response(row: Any, format: str, columns: Mapping[str, str], seen: KeysSeen | None = None) -> Conversation:
    """Turn a row into a conversation with a response; see `to_conversation` and `to_preference`.

    Returns:
        A conversation; of a pair the prompt, without loss on earlier turns, and the chosen response.
    """
    if format in PAIR_FIELDS:
        return _chosen(to_preference(row, format, columns, seen))
    if ":" not in format or not isinstance(row, dict):
        return to_conversation(row, format, columns, seen)
    readers = {
        ("chosen", "rejected"): lambda made: _chosen(to_preference(made, converted_pair_format(made), {}, seen)),
        ("messages",): lambda made: to_conversation(made, "messages", {}, seen),
        ("prompt",): lambda made: to_conversation(made, "prompt_completion", {}, seen),
    }
    return read_converted(row, format, readers, _RETURNS)


def _chosen(pair: Preference) -> Conversation:
    earlier = (replace(m, train=False) if m.role == "assistant" else m for m in pair.prompt.messages)
    return replace(pair.prompt, messages=(*earlier, pair.chosen))


RESPONSES = RowKind(PROMPT_FIELDS, detect_responses, to_response, fallback="text")
