"""What a stage parses rows into: the formats it knows, how one is detected, and how a row is converted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from alignkit.data.rows.formats import FIELDS, Fields, detect_format, to_conversation
from alignkit.data.rows.keys_seen import KeysSeen

Item = TypeVar("Item")


@dataclass(frozen=True)
class RowKind(Generic[Item]):
    """What a stage parses rows into.

    Attributes:
        fields: of its formats.
        detect: the one format that fits (columns of the first rows, the first row, `columns`), as `detect_format`.
        convert: (row, format, columns, keys seen) to an item, as `to_conversation`.
        fallback: the format where no row shows one.
    """

    fields: Fields
    detect: Callable[..., str]
    convert: Callable[[Any, str, Mapping[str, str], KeysSeen], Item]
    fallback: str


CONVERSATIONS = RowKind(FIELDS, detect_format, to_conversation, fallback="text")
UNTRAINED = replace(CONVERSATIONS, convert=partial(to_conversation, to_train=False))  # whatever their labels say
