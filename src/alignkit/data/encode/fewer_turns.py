"""Conversations without their first turns: `keep_end` cuts where a turn begins before it cuts inside one.

A cut among the tokens of a row may leave the rest of an answer under a user's heading. A conversation without whole
turns is rendered anew: the row is what a server would feed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from alignkit.choices import TrainOn
from alignkit.data.encode.lengths import needed_length
from alignkit.data.encode.masking import Encoding, RowRefused
from alignkit.data.encode.supervision import trained_messages
from alignkit.data.rows.conversation import Conversation

CUT_TURNS = "cut_turns"


def longest_ends(
    conversations: Sequence[Conversation], fits: Callable[[list[Conversation]], list[bool]]
) -> list[Conversation]:
    """Return each conversation without as many of its first turns as it takes to fit; system messages stay.

    Args:
        conversations: each ends in the turns that must stay: a prompt's last user turn, or that and its response.
        fits: tells of several conversations which are short enough; asked a few times, of all at once.

    Returns:
        The longest end of each that fits and begins with a user turn; the shortest there is where none does.
    """
    ends = [_ends(conversation) for conversation in conversations]
    low, high = [0] * len(ends), [len(of_one) - 1 for of_one in ends]
    while unsettled := [index for index in range(len(ends)) if low[index] < high[index]]:
        middles = [(low[index] + high[index]) // 2 for index in unsettled]
        found = fits([ends[index][middle] for index, middle in zip(unsettled, middles, strict=True)])
        for index, middle, is_short in zip(unsettled, middles, found, strict=True):
            if is_short:
                high[index] = middle
            else:
                low[index] = middle + 1
    return [of_one[at] for of_one, at in zip(ends, low, strict=True)]


def _ends(conversation: Conversation) -> list[Conversation]:
    """List a conversation and its ends, from the longest to the shortest."""
    messages = conversation.messages
    lead = tuple(takewhile(lambda message: message.role in ("system", "developer"), messages))
    asked = messages[:-1] if messages[-1].role == "assistant" else messages
    starts = [index for index, message in enumerate(asked) if message.role == "user"][1:]
    return [conversation, *(replace(conversation, messages=(*lead, *messages[start:])) for start in starts)]


def without_first_turns(
    rows: Mapping[int, tuple[Conversation, int]],
    encode: Callable[[list[Conversation]], list[list[Encoding] | RowRefused]],
    train_on: TrainOn,
    max_length: int,
) -> dict[int, list[Encoding]]:
    """Encode rows that are too long again, without as many of their first turns as it takes.

    Args:
        rows: each with the number of its parts, by any number.
        encode: several of them, as `encode_rows` does.
        train_on: see `data.train_on`.
        max_length: most tokens in a row.

    Returns:
        The parts of those that lost turns, by their numbers; the last exchange alone may still be too long.
    """

    def fits(some: list[Conversation]) -> list[bool]:
        return [
            not isinstance(row, RowRefused) and all(needed_length(part) <= max_length for part in row)
            for row in encode(some)
        ]

    asked = [(number, kept) for number, (row, parts) in rows.items() for kept in _kept_together(row, parts, train_on)]
    ends = longest_ends([kept for _, kept in asked], fits)
    found: dict[int, list[Encoding]] = {}
    refused, cut = set(), set()
    for (number, before), end, row in zip(asked, ends, encode(ends), strict=True):
        cut |= {number} if end != before else set()
        if isinstance(row, RowRefused):
            refused.add(number)
            continue
        parts = row if end == before else [replace(part, cuts={"input_ids": part.lead_length}) for part in row]
        found[number] = [*found.get(number, []), *parts]
    return {number: found[number] for number in cut - refused}


def _kept_together(conversation: Conversation, num_parts: int, train_on: TrainOn) -> list[Conversation]:
    """What is cut as one: the row, or, of a row in several parts, each response with what came before it."""
    if conversation.plain:
        return []
    if train_on is TrainOn.everything:  # what lies between the responses is trained once, in the last part
        return [conversation] if num_parts == 1 else []
    *earlier, last = sorted(trained_messages(conversation.messages, train_on))
    if num_parts == 1:
        return [replace(conversation, messages=conversation.messages[: last + 1])]
    return [_alone(conversation, turn) for turn in (*earlier, last)]


def _alone(conversation: Conversation, turn: int) -> Conversation:
    """Return the conversation up to an assistant turn, which alone carries loss."""
    before = (replace(m, train=False) if m.role == "assistant" else m for m in conversation.messages[:turn])
    return replace(conversation, messages=(*before, replace(conversation.messages[turn], train=True)))
