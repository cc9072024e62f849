"""The cache of a batch against plain tensors, under any order of what can happen to it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from alignkit.sampling.cache import BatchCache, RoomyLayer

WINDOW = 6  # of the second layer, which keeps one column less
EVENTS = st.lists(
    st.tuples(st.sampled_from(["feed", "feed", "feed", "keep", "copy", "put", "narrow"]), st.integers(0, 99))
)


def made(num_rows: int, width: int) -> DynamicCache:
    cache = DynamicCache()
    cache.layer_class_to_replicate = None
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=WINDOW)]
    for layer in range(2):
        states(cache, layer, torch.randn(num_rows, 2, width, 3))
    return cache


def states(cache: Any, layer: int, keys: torch.Tensor) -> torch.Tensor:
    """What a model sees of keys when it adds some; its values are twice as much."""
    seen, values = cache.update(keys, 2 * keys, layer)
    assert torch.equal(values, 2 * seen)
    return seen


@given(num_rows=st.integers(1, 4), width=st.integers(1, 9), events=EVENTS)
def test_a_model_sees_what_it_wrote(num_rows: int, width: int, events: list[tuple[str, int]]) -> None:
    torch.manual_seed(0)
    first = made(num_rows, width)
    whole = [first.layers[0].keys, torch.randn(num_rows, 2, width, 3)]  # every column of each layer, as plain tensors
    whole[1][:, :, -WINDOW + 1 :] = first.layers[1].keys
    cache = BatchCache(first)
    for event, number in [*events, ("feed", 0)]:
        num_rows, _, width, _ = whole[0].shape
        if event == "feed":
            for layer in range(2):
                new = torch.randn(num_rows, 2, 1, 3)
                whole[layer] = torch.cat([whole[layer], new], dim=-2)
                seen = states(cache.cache, layer, new)
                assert torch.equal(seen, whole[layer][:, :, -WINDOW:] if layer else whole[layer])
            assert cache.cache.get_seq_length() == width + 1
            assert cache.cache.get_mask_sizes(1, 0) == (width + 2, 0)
            assert sum(cache.cache.get_mask_sizes(1, 1)) == width + 2
        elif event == "keep":
            kept = torch.arange(num_rows)[number % num_rows :]
            whole = [keys[kept] for keys in whole]
            cache.keep(kept)
        elif event == "copy":
            twice = torch.arange(num_rows).repeat(2)[: 1 + number % 4]
            own = cache.copy(twice)
            for layer in range(2):  # what is written into the one is not in the other
                states(cache.cache, layer, torch.full((num_rows, 2, 1, 3), 1e9))
            whole, cache = [keys[twice] for keys in whole], own
        elif event == "put":
            other, place = made(1, 1 + number % width), torch.tensor([number % num_rows])
            for keys, theirs in zip(whole, other.layers, strict=True):
                keys[place, :, -theirs.keys.shape[-2] :] = theirs.keys
            cache.put(place, BatchCache(other))
        elif width > 1:
            left = 1 + number % (width - 1)
            whole = [keys[:, :, -left:] for keys in whole]
            cache.narrow(left)


def test_a_token_is_written_in_place() -> None:
    roomy = RoomyLayer(torch.randn(2, 2, 5, 3), torch.randn(2, 2, 5, 3))
    addresses = []
    for _ in range(100):
        keys, _ = roomy.update(torch.randn(2, 2, 1, 3), torch.randn(2, 2, 1, 3))
        addresses.append(keys.data_ptr())
    moved = [one for one, (old, new) in enumerate(pairwise(addresses), 1) if old != new]
    assert moved == [33, 66, 99]
    assert keys.shape == (2, 2, 105, 3)


def test_a_recurrent_state_takes_no_rows() -> None:
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), LinearAttentionLayer()]
    assert not BatchCache(cache).takes_rows
    assert [type(layer) for layer in cache.layers] == [DynamicLayer, LinearAttentionLayer]
