"""The key/value cache of a batch whose rows come and go, laid out so that a step writes its column and copies nothing.

Rows end in the same, newest column; what lies left of a row's first token is not its own, and the attention mask hides
it. So the slot of a row that ended is free for the next row as it is, and columns that no row reaches back to can go.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 32  # columns: what is there is copied once in as many steps


def is_known(cache: Any) -> bool:
    """Tell whether all that a cache keeps is in its layers: one of a model's own may keep more beside them."""
    return type(cache) is DynamicCache


class BatchCache:
    """The keys and values of a batch of rows.

    Args:
        cache: as the model made it of the first tokens of every row.

    Attributes:
        cache: to be handed to the model.
        takes_rows: whether a row can be put into a slot, and columns can go. Not where a model keeps something else
            than keys and values by column, such as a recurrent state: there rows can only be dropped.
    """

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        layers = getattr(cache, "layers", [None])
        self.takes_rows = is_known(cache) and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
        )
        if self.takes_rows:
            cache.layers = [_with_room(layer) if type(layer) is DynamicLayer else layer for layer in layers]

    def keep(self, slots_K: Tensor) -> None:
        """Drop all rows but those in these slots; one that is named twice becomes two."""
        self.cache.reorder_cache(slots_K)

    def copy(self, slots_K: Tensor) -> BatchCache:
        """Return the rows in these slots as a cache of their own."""
        copied = deepcopy(self)
        copied.keep(slots_K)
        return copied

    def put(self, slots_K: Tensor, other: BatchCache) -> None:
        """Make K rows of another cache, of no more columns, the rows in these slots."""
        assert self.takes_rows, "this cache takes no rows"
        for ours, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for old, new in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
                width = min(old.shape[-2], new.shape[-2])  # a window may be narrower than the columns
                old[slots_K, :, -width:] = new[:, :, -width:]

    def narrow(self, width: int) -> None:
        """Keep the newest columns only."""
        assert self.takes_rows, "this cache has no columns"
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]
            if layer.is_sliding:
                layer.cumulative_length = width


class RoomyLayer(DynamicLayer):
    """Keys and values `[B, H, S, D]` as the newest columns of a buffer with room for more.

    Upstream's layer copies all of them for every token.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers does not annotate it
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._hold()

    def _hold(self) -> None:
        self._buffers: tuple[Tensor, ...] = (self.keys, self.values)
        self._end = self.keys.shape[-2]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens behind those that are there; all of them, as views."""
        num_new, width = key_states.shape[-2], self.get_seq_length()
        if self._end + num_new > self._buffers[0].shape[-2]:
            self._buffers = tuple(_roomier(states, num_new + _ROOM) for states in (self.keys, self.values))
            self._end = width
        start, end = self._end - width, self._end + num_new
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._end : end] = states
        self.keys, self.values = (buffer[:, :, start:end] for buffer in self._buffers)
        self._end = end
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep the rows in these slots."""
        super().reorder_cache(beam_idx)
        self._hold()


def _with_room(layer: Any) -> RoomyLayer:
    return RoomyLayer(layer.keys, layer.values)


def _roomier(states: Tensor, room: int) -> Tensor:
    *rows, width, size = states.shape
    buffer = torch.empty(*rows, width + room, size, dtype=states.dtype, device=states.device)
    buffer[:, :, :width] = states
    return buffer
