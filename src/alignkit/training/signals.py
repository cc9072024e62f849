"""Ctrl-C, SIGTERM and SIGHUP: the first one asks training to stop after its step, the second one kills.

Where no step is being taken, the first one ends what runs at once, as an exception.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from alignkit.errors import StopSignal

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
    """Catch SIGINT, SIGTERM and SIGHUP while the block runs; the handlers that were there come back after it.

    Args:
        announce: say on standard error that the signal was seen (one process of several should).
    """
    request = StopRequest()

    def first(number: int) -> None:
        if announce:  # not through logging or print: the signal may have come in the middle of either
            said = f"\n{name_of(number)}: saving a checkpoint after this step; once more kills at once\n"
            with suppress(OSError):  # SIGHUP says that the terminal is gone
                os.write(2, said.encode())

    with _caught((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), request, first):
        yield request


@contextmanager
def stops_raised() -> Iterator[None]:
    """Raise `StopSignal` for SIGTERM and SIGHUP while the block runs, as Python does for Ctrl-C."""

    def first(number: int) -> None:
        raise StopSignal(number)

    with _caught((signal.SIGTERM, signal.SIGHUP), StopRequest(), first):
        yield


@contextmanager
def _caught(numbers: Iterable[int], request: StopRequest, first: Callable[[int], None]) -> Iterator[None]:
    """Call `first` for the first of these signals; another one, if it is not the same request, kills."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    owner = os.getpid()

    def receive(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() == owner and not request.number:
            request.number, request.at = number, now
            first(number)
        elif os.getpid() != owner or now - request.at > _SAME_REQUEST_SECONDS:  # a forked worker has nothing to save
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    # `nohup` lets SIGHUP be ignored, and so it stays.
    caught = [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name_of(number: int) -> str:
    """Name a signal: SIGTERM for 15."""
    return signal.Signals(number).name
