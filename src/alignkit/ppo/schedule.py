"""The prompts of an update, the completions of a minibatch, and settings that change over the updates."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence


def prompts_of_update(num_all: int, update: int, *, num_prompts: int, seed: int, shuffle: bool) -> list[int]:
    """Choose the prompts of an update, by their indices, in the order they are completed.

    Prompts are taken from one order after the other, each of all prompts and freshly shuffled, so that none is taken
    twice before every other was taken once. A function of its arguments alone: a resumed run has nothing to restore.

    Args:
        num_all: number of prompts.
        update: counted from 0.
        num_prompts: prompts of one update.
        seed: of the orders.
        shuffle: False takes them in the order of the data.
    """
    first = update * num_prompts
    chosen: list[int] = []
    while len(chosen) < num_prompts:
        lap, position = divmod(first + len(chosen), num_all)
        order = list(range(num_all))
        if shuffle:
            random.Random(f"prompts {seed} {lap}").shuffle(order)
        chosen += order[position : position + num_prompts - len(chosen)]
    return chosen


def prompts_of_refill(
    num_all: int, update: int, refill: int, *, num_prompts: int, seed: int, asked: Collection[int]
) -> list[int]:
    """Choose further prompts for an update, by their indices: such that were not asked in it, where there are any.

    Args:
        num_all: number of prompts.
        update: counted from 0.
        refill: of this update, counted from 0.
        num_prompts: how many to choose.
        seed: of the choice.
        asked: in this update before.
    """
    order = [index for index in range(num_all) if index not in asked] or list(range(num_all))
    random.Random(f"refill {seed} {update} {refill}").shuffle(order)
    return [order[number % len(order)] for number in range(num_prompts)]


def minibatches(
    lengths: Sequence[int], *, num_mini_batches: int, update: int, epoch: int, seed: int
) -> list[list[int]]:
    """Cut a fresh seeded shuffle into the minibatches of a pass, equal parts of the completions by their indices.

    Within a minibatch they are sorted by length, so that those that share a forward pass cost the least padding; the
    loss of a minibatch does not depend on the order in it.

    Args:
        lengths: of each completion with its prompt, in tokens.
        num_mini_batches: divides their number.
        update: counted from 0.
        epoch: the pass, counted from 0.
        seed: of the shuffle.
    """
    order = list(range(len(lengths)))
    random.Random(f"minibatches {seed} {update} {epoch}").shuffle(order)
    size = len(order) // num_mini_batches
    assert size * num_mini_batches == len(order), "minibatches are of one size"
    cuts = [order[start : start + size] for start in range(0, len(order), size)]
    return [sorted(cut, key=lambda index: (-lengths[index], index)) for cut in cuts]


def linear(start: float, end: float | None, *, update: int, num_updates: int) -> float:
    """Interpolate a setting linearly from `start` at the first update to `end` at the last; None stays at the start."""
    if end is None or num_updates < 2:
        return start
    return start + (end - start) * update / (num_updates - 1)
