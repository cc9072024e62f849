"""Which turns and stretches of a conversation carry loss."""

from __future__ import annotations

from collections.abc import Sequence

from alignkit.choices import TrainOn
from alignkit.data.encode.rendering import RowRefused
from alignkit.data.rows.conversation import Message


def trained_messages(messages: Sequence[Message], train_on: TrainOn) -> set[int]:
    """Return the indices of the messages with loss: those that `train_on` names, where a message does not say itself.

    Raises:
        RowRefused: a message that is not the assistant's asks for loss, and `train_on` is not `everything`.
    """
    turns = assistant_turns(messages)
    chosen = {
        TrainOn.assistant: turns,
        TrainOn.last_turn: turns[-1:],
        TrainOn.everything: range(len(messages)),
    }[train_on]
    trained = {i for i, message in enumerate(messages) if (i in chosen if message.train is None else message.train)}
    for i in sorted(trained):
        if messages[i].role != "assistant" and train_on is not TrainOn.everything:
            raise RowRefused(f"train: true on a {messages[i].role} message needs data.train_on=everything")
    return trained


def assistant_turns(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the assistant's messages."""
    return [i for i, message in enumerate(messages) if message.role == "assistant"]


def is_trained_between(messages: Sequence[Message], trained: set[int], start: int, stop: int) -> bool:
    """Tell whether the text between two responses carries loss under `train_on=everything`.

    Args:
        messages: the conversation.
        trained: indices of the messages with loss.
        start: the first message of the stretch.
        stop: the message after it.

    Raises:
        RowRefused: some of its messages carry loss and others do not, and some of its tokens may lie in both.
    """
    flags = {i in trained for i in range(start, stop) if messages[i].role != "assistant"}
    if len(flags) > 1:
        raise RowRefused("train: false on one message of a prompt and not on the others")
    return False not in flags
