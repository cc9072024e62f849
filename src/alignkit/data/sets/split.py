"""Rows held out for evaluation, whole conversations at a time."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from alignkit.choices import EvalGroups
from alignkit.data.sets.items import Item, SourcedItem
from alignkit.errors import DataError

_PHRASE = 50  # beginnings: an exchange in rows of more than these is a phrase, not one dialog's


def hold_out(
    items: Mapping[str, list[SourcedItem[Item]]], *, fraction: float, groups: EvalGroups | None, seed: int
) -> dict[str, list[SourcedItem[Item]]]:
    """Move a share of the items of `train` to a set `eval`, whole groups at a time; see `split_by_key`.

    Rows of several turns that share a beginning share its answers too: grouped by their prompts alone, a held-out row
    could hold an answer that training supervises, and so could windows over one dialog.
    """
    if not fraction:
        return dict(items)
    train = items["train"]
    by_prompt = groups is EvalGroups.prompt
    keys = [item.item.prompt_key() for item in train] if by_prompt else conversation_keys(train)
    if len(set(keys)) < 2:
        shared = "share one prompt" if by_prompt else _what_is_shared(train)
        way_out = ": data.eval_groups=prompt groups by whole prompts" if _num_prompts(train) > 1 else ""
        raise DataError(f"data.eval_fraction: {len(keys)} rows {shared}, which cannot be on both sides{way_out}")
    kept, held_out = split_by_key(keys, fraction=fraction, seed=seed)
    return {**items, "train": [train[i] for i in kept], "eval": [train[i] for i in held_out]}


def conversation_keys(items: Sequence[SourcedItem[Item]]) -> list[str]:
    """Return a key for each item that is the same for all of one conversation: the least of their beginnings.

    Items are of one conversation if they begin alike, if two exchanges in a row are the same in both, or if one begins
    with an exchange of the other, as windows over a dialog do: there nothing before it could tell them apart. A single
    exchange elsewhere ("Thanks!", "You're welcome.") does not join them, nor does one that is in too many to be of
    one dialog. A pair has the exchanges of both of its responses: what one prefers another may reject. Of texts only
    digests are held.
    """
    beginnings = [item.item.beginning_key() for item in items]
    groups = _Groups(beginnings)
    seen: dict[bytes, str] = {}  # two exchanges in a row, and the beginning of the first item that has them
    holders: dict[bytes, set[str]] = {}  # of exchanges that an item begins with: the beginnings of those that have them
    for item, beginning in zip(items, beginnings, strict=True):
        for exchanges in _chains(item):
            holders |= {first: set() for first in exchanges[:1] if first not in holders}
            for both in pairwise(exchanges):
                groups.join(seen.setdefault(b"".join(both), beginning), beginning)
    for item, beginning in zip(items, beginnings, strict=True):
        for exchange in set().union(*_chains(item)) & holders.keys():
            if len(holders[exchange]) <= _PHRASE:
                holders[exchange].add(beginning)
    for found in holders.values():
        if len(found) <= _PHRASE:
            groups.join(*found)
    return [groups.least(beginning) for beginning in beginnings]


def _chains(item: SourcedItem[Item]) -> list[list[bytes]]:
    return [[_hash(key, 0) for key in chain] for chain in item.item.exchange_chains()]


class _Groups:
    """Keys that are joined, each group known by its least: a union-find."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._parents = {key: key for key in keys}

    def least(self, key: str) -> str:
        while (parent := self._parents[key]) != key:
            self._parents[key] = key = self._parents[parent]
        return key

    def join(self, *keys: str) -> None:
        found = {self.least(key) for key in keys}
        for key in found:
            self._parents[key] = min(found)


def _what_is_shared(items: Sequence[SourcedItem[Item]]) -> str:
    if len({item.item.beginning_key() for item in items}) == 1:
        return "begin with the same user turn"
    return "share turns, each with others"


def _num_prompts(items: Sequence[SourcedItem[Item]]) -> int:
    return len({item.item.prompt_key() for item in items})


def split_by_key(keys: Sequence[str], *, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold out a share of the rows so that no key is on both sides.

    Keys are taken in the order of a hash of seed and key, each if it brings the number of held-out rows nearer to
    the share; so the order of the rows does not matter.

    Args:
        keys: the group of each row; at least two differ if `fraction` > 0.
        fraction: share of the rows to hold out, from 0 (none) to below 1.
        seed: of the hash.

    Returns:
        Indices of the rows that stay and of those held out, each ascending; both sides have a key if `fraction` > 0.
    """
    if fraction == 0:
        return list(range(len(keys))), []
    groups: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
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
