"""What a row says beside its turns: a system message, earlier turns, tools, arguments of the template, a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.data.rows.call_order import check_calls
from alignkit.data.rows.columns import look_up, used_up
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.keys import COLUMNS, Use, refusal, spellings
from alignkit.data.rows.tools import Tool, read_tools
from alignkit.data.rows.turns import check_order
from alignkit.data.rows.values import (
    RowError,
    RowUnusable,
    checked_json,
    checked_text,
    given,
    is_nothing,
    misfit,
)

LABELLED_BAD = "labelled_bad"

_REFUSED = spellings(Use.refused)
_NAMES = frozenset(
    name
    for use in (Use.system, Use.history, Use.tools, Use.argument, Use.arguments, Use.label, Use.refused)
    for name in spellings(use)
)
_VERDICTS = {"true": True, "1": True, "false": False, "0": False}  # as CSV has them
# Of `apply_chat_template`, which are no arguments of a template.
_RESERVED = ("messages", "conversation", "tools", "add_generation_prompt", "continue_final_message", "chat_template")


@dataclass(frozen=True)
class Surroundings:
    """What a row says beside its turns.

    Attributes:
        messages: a system message and earlier turns, which come first.
        tools: as `Conversation.tools`.
        template_kwargs: as `Conversation.template_kwargs`.
    """

    messages: Sequence[Message] = ()
    tools: tuple[Tool, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def around(self, messages: Sequence[Message], *, response: Sequence[Message] = ()) -> Conversation:
        """Return the conversation of a row's turns; those of `response` are checked with them, and left out.

        Raises:
            RowError: the turns stand in no order that a template can render, or calls, results and tools do not belong
                together.
        """
        whole = [message for message in messages if message.role != "system" or message.content.strip()]
        if self.messages:
            whole = _in_front(self.messages, whole)
        turns = [*whole, *response] if response else whole
        check_order(turns)
        notes = check_calls(turns, self.tools)
        return Conversation(tuple(whole), False, self.tools, self.template_kwargs, notes)


NONE = Surroundings()


def _in_front(before: Sequence[Message], messages: Sequence[Message]) -> list[Message]:
    """Put a row's own system message and earlier turns in front; the same system message may be there twice."""
    is_system = [message.role in ("system", "developer") for message in messages]
    lead = [*messages[: is_system.index(False)]] if False in is_system else [*messages]
    if lead and lead[0].role == before[0].role == "system":
        if before[0].content.strip() != lead[0].content.strip():
            raise RowError("the row's system message and that of its turns differ")
        before = before[1:]
    own = [message for message in before if message.role == "system"]
    return [*own, *lead, *before[len(own) :], *messages[len(lead) :]]


def read_surroundings(row: dict[str, Any], columns: Mapping[str, str]) -> Surroundings:
    """Read what a row says beside its turns.

    Args:
        row: as it was read.
        columns: field to column; a column that another field takes is not read under its own name.

    Raises:
        RowError: what is wrong first, or that something has no place in training on text.
    """
    if not columns and _NAMES.isdisjoint(row):
        return NONE
    found = _found(row, columns)
    _check_refused(found)
    system = given(found, spellings(Use.system))
    messages = [Message("system", checked_text(system, "system"))] if system is not None else []
    messages = [message for message in messages if message.content.strip()]
    tools = given({name: read_tools(found.get(name), name) for name in spellings(Use.tools)}, spellings(Use.tools))
    return Surroundings([*messages, *_history(found.get("history"))], tools or (), _arguments(found))


def check_text(row: dict[str, Any], columns: Mapping[str, str]) -> None:
    """Refuse what has no place beside plain text either: images, audio and video.

    Raises:
        RowError: one of them is there.
    """
    if not _NAMES.isdisjoint(row):
        _check_refused(_found(row, columns))


def _check_refused(found: Mapping[str, Any]) -> None:
    for name in _REFUSED:
        if not is_nothing(found.get(name)):
            raise RowError(refusal(name))


def check_label(row: dict[str, Any], columns: Mapping[str, str]) -> None:
    """Leave out a response that its row calls bad: it is not to be learned.

    Raises:
        RowUnusable: the label is false.
        RowError: it is neither true nor false.
    """
    if not columns and "label" not in row and "kto_tag" not in row:
        return
    label = given(_found(row, columns), spellings(Use.label))
    if label is None:
        return
    verdict = label if label in (0, 1) else _VERDICTS.get(str(label).lower())
    if verdict is None:
        raise RowError("'label' is neither true nor false")
    if not verdict:
        raise RowUnusable(LABELLED_BAD)


def _found(row: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    taken = used_up(columns)
    found = {name: row[name] for name in COLUMNS if name in _NAMES and name in row and name not in taken}
    mapped = {name: look_up(row, column) for name, column in columns.items() if name in _NAMES}
    return found | mapped


def _history(value: Any) -> list[Message]:
    """Read earlier turns: a list, or its JSON text, of pairs of what the user said and what the assistant answered."""
    turns = checked_json(value, "history") if not is_nothing(value) else []
    if not isinstance(turns, list):
        raise RowError(misfit(turns, "history", "a list of [user, assistant]"))
    messages = []
    for turn in turns:
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise RowError("'history' has a turn that is no [user, assistant]")
        user, assistant = (checked_text(text, "history") for text in turn)
        if not user.strip() or not assistant.strip():
            raise RowError("'history' has an empty turn")
        messages += [Message("user", user), Message("assistant", assistant)]
    return messages


def _arguments(found: Mapping[str, Any]) -> dict[str, Any]:
    """Read arguments of the template: those with a column of their own, and the others by name."""
    named = found.get("chat_template_kwargs")
    arguments = checked_json(named, "chat_template_kwargs") if not is_nothing(named) else {}
    if not isinstance(arguments, dict):
        raise RowError(misfit(arguments, "chat_template_kwargs", "an object"))
    arguments = {name: value for name, value in arguments.items() if value is not None}
    for name in _RESERVED:
        if name in arguments:
            raise RowError(f"'chat_template_kwargs' has '{name}', which is no argument of a template")
    for name in spellings(Use.argument):
        value = found.get(name)
        if is_nothing(value):
            continue
        value = checked_json(value, name) if name == "documents" else value
        if arguments.setdefault(name, value) != value:
            raise RowError(f"'{name}' and 'chat_template_kwargs' differ")
    _check_documents(arguments.get("documents", []))
    return arguments


def _check_documents(documents: Any) -> None:
    if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
        raise RowError(misfit(documents, "documents", "a list of objects"))
