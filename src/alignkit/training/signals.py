"""Ctrl-C and SIGTERM as requests: the first one asks training to stop after its step, the second one kills."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

# A terminal signals its whole process group and torchrun then passes the same signal on to its workers: within this
# many seconds, a repeat is the same request.
_SAME_REQUEST_SECONDS = 1.0


@dataclass
class StopRequest:
    """The signal that asked to stop (0 while none has), and when it came."""

    number: int = 0
    at: float = 0.0


@contextmanager
def stop_requests(*, announce: bool) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the block runs; the handlers that were there come back after it.

    Args:
        announce: say on standard error that the signal was seen (one process of several should).
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return

    def receive(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not request.number:
            request.number, request.at = number, now
            if announce:  # not through logging or print: the signal may have come in the middle of either
                os.write(
                    2, f"\n{name_of(number)}: saving a checkpoint after this step; once more kills at once\n".encode()
                )
        elif now - request.at > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name_of(number: int) -> str:
    """Name a signal: SIGTERM for 15."""
    return signal.Signals(number).name
