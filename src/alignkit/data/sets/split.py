"""Rows held out for evaluation, whole prompts at a time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from alignkit.data.sets.items import Item, SourcedItem
from alignkit.errors import DataError


def hold_out(
    items: Mapping[str, list[SourcedItem[Item]]], *, fraction: float, seed: int
) -> dict[str, list[SourcedItem[Item]]]:
    """Move a share of the items of `train` to a set `eval`, whole prompts at a time; see `split_by_prompt`."""
    if not fraction:
        return dict(items)
    train = items["train"]
    kept, held_out = split_by_prompt([item.item.prompt_key() for item in train], fraction=fraction, seed=seed)
    return {**items, "train": [train[i] for i in kept], "eval": [train[i] for i in held_out]}


def split_by_prompt(keys: Sequence[str], *, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold out a share of the rows so that no prompt is on both sides.

    Prompts are taken in the order of a hash of seed and prompt, each if it brings the number of held-out rows nearer to
    the share; so the order of the rows does not matter.

    Args:
        keys: the prompt of each row.
        fraction: share of the rows to hold out, from 0 (none) to below 1.
        seed: of the hash.

    Returns:
        Indices of the rows that stay and of those held out, each ascending; both sides have a prompt if `fraction` > 0.

    Raises:
        DataError: there are fewer than two prompts to divide.
    """
    if fraction == 0:
        return list(range(len(keys))), []
    groups: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    if len(groups) < 2:
        raise DataError(f"data.eval_fraction: {len(keys)} rows share one prompt, which cannot be on both sides")
    ordered = sorted(groups, key=lambda key: _hash(key, seed))
    wanted = fraction * len(keys)
    num_held, held = 0, set()
    for key in ordered:
        size = len(groups[key])
        if abs(num_held + size - wanted) < abs(num_held - wanted):
            held.add(key)
            num_held += size
    if not held:
        held.add(min(ordered, key=lambda key: len(groups[key])))
    if len(held) == len(groups):
        held.remove(min(ordered, key=lambda key: len(groups[key])))
    stay = [index for index, key in enumerate(keys) if key not in held]
    return stay, [index for index, key in enumerate(keys) if key in held]


def _hash(key: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\x00{key}".encode(errors="surrogatepass"), digest_size=16).digest()
