"""Which bytes are alive while torch computes: those of every tensor that an operation returned and nobody let go of."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of storages made while it is on, fake or real; what a kernel takes for itself is not seen.

    Args:
        there: tensors that are there already and are not counted.

    Attributes:
        now: bytes alive.
        peak: the most that were alive since the start or the last `restart`.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {id(tensor.untyped_storage()): 0 for tensor in there}

    def restart(self) -> None:
        """Look for the peak from here on."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Add up the bytes of tensors, those that share memory once."""
    return sum({id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def tensors_of(*modules: nn.Module | None) -> list[Tensor]:
    """List the parameters and buffers of modules."""
    return [t for module in modules if module is not None for t in (*module.parameters(), *module.buffers())]
