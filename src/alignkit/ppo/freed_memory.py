"""On a CPU, gives the memory that a backward pass freed back to the system, where glibc would keep it.

The tensors of a rollout and of a pass with its gradient are of many sizes and seldom fit into the holes that others
left: after a few passes there is several times as much in holes as in use.
"""

from __future__ import annotations

import ctypes
import sys

import torch

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_NUMBERS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Account(ctypes.Structure):
    """`struct mallinfo2` of malloc.h: `uordblks` bytes of the heap are in use, `fordblks` are not."""

    _fields_ = [(name, ctypes.c_size_t) for name in _NUMBERS.split(" ")]


def give_back_freed_memory(device: torch.device) -> None:
    """Give back what malloc holds unused, once that is more than half of what is in use.

    The rule spares a small model the walk over the heap. Numbers do not change.

    Args:
        device: of the training; where it is no CPU, nothing is done, since torch keeps its own memory there.
    """
    if device.type != "cpu" or not hasattr(_LIBC, "mallinfo2"):  # glibc has it from 2.33 on
        return
    assert _LIBC is not None
    _LIBC.mallinfo2.restype = _Account
    account = _LIBC.mallinfo2()
    if 2 * account.fordblks > account.uordblks:
        _LIBC.malloc_trim(0)
