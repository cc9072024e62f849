"""Which keys the rows of a data set have, and which of them are read: nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from alignkit.data.rows.columns import look_up, used_up
from alignkit.data.rows.content_parts import PART_KEYS
from alignkit.data.rows.keys import COLUMNS, FIELDS, MESSAGE_KEYS, PAIR_FIELDS, Use, spellings
from alignkit.data.rows.values import listed

_HOLD_TURNS = (Use.turns, Use.prompt, Use.response, Use.chosen, Use.rejected)
_SPELLED = (Use.thought, Use.system, Use.tools, Use.label)  # columns of these are one field in several spellings
_WORDS = {
    Use.turns: "turns",
    Use.prompt: "prompt",
    Use.context: "context",
    Use.response: "response",
    Use.thought: "reasoning",
    Use.text: "text",
    Use.chosen: "chosen",
    Use.rejected: "rejected",
    Use.margin: "margin",
    Use.system: "system message",
    Use.history: "earlier turns",
    Use.tools: "tools",
    Use.argument: "template arguments",
    Use.arguments: "template arguments",
    Use.label: "rows to keep",
}


class KeysSeen:
    """The keys of rows and messages that were read.

    Args:
        unused: what the columns are that are not read.

    Attributes:
        used: what each column is read for, in a word, by column.
        columns: those that are not read.
        message_keys: the same of messages and of the parts of their content.
    """

    def __init__(self, unused: str = "columns not used") -> None:
        self._unused = unused
        self.used: dict[str, str] = {}
        self.columns: dict[str, None] = {}
        self.message_keys: dict[str, None] = {}
        self._shapes: set[tuple[Any, ...]] = set()

    def add(
        self,
        row: dict[str, Any],
        format: str,
        columns: Mapping[str, str],
        *,
        unread: Collection[Use] = (),
    ) -> None:
        """Note the keys of one row; those of the uses `unread` are not read here."""
        fields = [name for name in _fields(format) if COLUMNS[name] not in unread]
        shape = (format, *row)
        if shape not in self._shapes:
            self._shapes.add(shape)
            self._add_columns(row, fields, columns)
        for field in fields:
            if COLUMNS[field] in _HOLD_TURNS:
                value = look_up(row, columns.get(field, field))
                value = listed(value) if COLUMNS[field] is Use.turns else value
                if isinstance(value, (list, dict)):
                    self._add_turns(value if isinstance(value, list) else [value])

    def update(self, other: KeysSeen) -> None:
        """Take over what another has seen."""
        self.used |= other.used
        self.columns |= other.columns
        self.message_keys |= other.message_keys

    def lines(self) -> list[str]:
        """Say which columns are read, and as what, and which keys are not."""
        used = ", ".join(name if name == word else f"{name} ({word})" for name, word in self.used.items())
        unused = ", ".join(name for name in self.columns if name not in self.used)
        keys = ", ".join(self.message_keys)
        lines = [("columns used", used), (self._unused, unused), ("message keys not used", keys)]
        return [f"{what}: {which}" for what, which in lines if which]

    def _add_columns(self, row: Iterable[str], fields: Collection[str], columns: Mapping[str, str]) -> None:
        taken = used_up(columns)
        read = {*fields, *(name for use in _SPELLED if spellings(use)[0] in fields for name in spellings(use))}
        for name in map(str, row):
            if name in read and name not in taken and name not in columns:
                self.used[name] = _WORDS[COLUMNS[name]]
            elif name not in taken:
                self.columns[name] = None
        self.used |= {column: _WORDS[COLUMNS[field]] for field, column in columns.items() if field in fields}

    def _add_turns(self, turns: Iterable[Any]) -> None:
        for turn in turns:
            if not isinstance(turn, dict):
                continue
            shape = (None, *turn)
            if shape not in self._shapes:
                self._shapes.add(shape)
                self.message_keys |= dict.fromkeys(str(key) for key in turn if key not in MESSAGE_KEYS)
            content = turn.get("content")
            for part in content if isinstance(content, list) else ():
                unknown = part.keys() - PART_KEYS if isinstance(part, dict) else ()
                self.message_keys |= dict.fromkeys(f"content.{key}" for key in sorted(map(str, unknown)))


def _fields(format: str) -> list[str]:
    """List what rows of a format may have."""
    required, optional = {**FIELDS, **PAIR_FIELDS}[format]
    return [*required, *optional]
