"""Which stretches of a rendered conversation carry loss, and whether inference would see what training saw there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from alignkit.config import TrainOn
from alignkit.data.encode.rendering import RowRefused, Segment, Template, first_difference, join_segments
from alignkit.data.rows.conversation import Message


def supervise(messages: Sequence[Message], template: Template, train_on: TrainOn) -> tuple[list[Segment], list[bool]]:
    """Render a conversation and says of each segment whether the loss sees it.

    Args:
        messages: the conversation.
        template: renders it.
        train_on: the turns that carry loss where a message's own `train` does not say.

    Returns:
        The segments, and as many flags.

    Raises:
        RowRefused: the template cannot render it, or not so that each trained turn follows what inference would feed;
            or the data's flags ask for what cannot be masked exactly.
    """
    trained = _trained(messages, train_on)
    segments = template.render(messages)
    for turn in trained:
        if messages[turn].role == "assistant":
            _check_prefix(messages, turn, segments, template)
    return segments, _loss(segments, len(messages), trained, train_on)


def _trained(messages: Sequence[Message], train_on: TrainOn) -> list[int]:
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    chosen = {
        TrainOn.assistant: turns,
        TrainOn.last_turn: turns[-1:],
        TrainOn.everything: range(len(messages)),
    }[train_on]
    trained = [i for i, message in enumerate(messages) if (i in chosen if message.train is None else message.train)]
    for i in trained:
        if messages[i].role != "assistant" and train_on is not TrainOn.everything:
            raise RowRefused(f"train: true on a {messages[i].role} message needs data.train_on=everything")
    return trained


def _check_prefix(messages: Sequence[Message], turn: int, segments: list[Segment], template: Template) -> None:
    fed = template.render(messages[:turn], add_generation_prompt=True)
    before = list(takewhile(lambda segment: segment.message != turn, segments))
    if before == fed and len(before) < len(segments):
        return
    if any(message.role == "assistant" for message in messages[turn + 1 :]):
        reason = "the template renders earlier turns otherwise later on: train the last alone, data.train_on=last_turn"
    else:
        reason = "the generation prompt is not the beginning of the trained text"
    raise RowRefused(reason, first_difference(join_segments(fed), join_segments(before)))


def _loss(segments: list[Segment], num_messages: int, trained: list[int], train_on: TrainOn) -> list[bool]:
    flags, num_rendered = [], 0
    for at, segment in enumerate(segments):
        if segment.message is not None:
            flags.append(segment.message in trained)
            num_rendered = segment.message + 1
            continue
        until = next((s.message for s in segments[at:] if s.message is not None), num_messages)
        between = {i in trained for i in range(num_rendered, until)}
        if len(between) > 1:  # some of its tokens may lie in both parts
            raise RowRefused("train: false on one message of a prompt and not on the others")
        flags.append(train_on is TrainOn.everything and False not in between)
    return flags
