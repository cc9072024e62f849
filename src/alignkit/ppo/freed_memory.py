"""On a CPU, gives the memory that a backward pass freed back to the system, where glibc would keep it.

The tensors of a rollout and of a pass with its gradient are of many sizes and seldom fit into the holes that others
left: after a few passes there is several times as much in holes as in use.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_WORTH_IT = 64_000_000  # bytes: to walk the heap for less would cost a small model more time than it saves memory


class FreedMemory:
    """What this process has freed and still holds.

    Args:
        device: of the training; where it is no CPU, nothing is given back, since torch keeps its own memory there.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_kept = device.type == "cpu" and hasattr(_LIBC, "malloc_trim")  # glibc has it
        self._held = _resident() if self._is_kept else 0  # as it was last, with no holes to speak of

    def give_back(self) -> None:
        """Give it back, where the process has grown since it last did. Numbers do not change."""
        if self._is_kept and _resident() > self._held + _WORTH_IT:
            assert _LIBC is not None
            _LIBC.malloc_trim(0)
            self._held = _resident()


def _resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split(" ")[1]) * os.sysconf("SC_PAGE_SIZE")
