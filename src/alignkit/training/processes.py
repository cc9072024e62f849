"""Processes that have trained together part before each of them ends."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alignkit.errors import Interrupted


@contextmanager
def parted_at_exit() -> Iterator[None]:
    """Close the connections to the other processes at this one's exit, if the block ends as it does in all of them.

    Left to the interpreter, they are torn down while threads still use them: now and then a process aborts after its
    result is written, and the launcher takes the run for a failed one. After an error nothing is closed: another
    process may be waiting for this one, which closing would join.
    """
    try:
        yield
    except Interrupted:
        _part_at_exit()
        raise
    _part_at_exit()


def _part_at_exit() -> None:
    # At exit, not here: the next run of a sweep goes on with the same connections.
    atexit.unregister(_part)
    atexit.register(_part)


def _part() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
