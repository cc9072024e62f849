"""Ctrl-C, SIGTERM and SIGHUP: the first one asks training to stop after its step, the second one kills.

Where no step is being taken, the first one ends what runs at once, as an exception. Code that swallows exceptions would
lose it: it is looked for again where a step or a run begins, and raised again where Python ignored it.
"""

from __future__ import annotations

import os
import signal
import sys
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
_AGAIN_SECONDS = 0.02


@dataclass
class StopRequest:
    """The signal that asked to stop (0 while none has), and when it came."""

    number: int = 0
    at: float = 0.0


_raised = StopRequest()  # what `stops_raised` has raised last


@contextmanager
def stop_requests(*, announce: bool) -> Iterator[StopRequest]:
    """Catch SIGINT, SIGTERM and SIGHUP while the block runs; the handlers that were there come back after it.

    One that was raised before it, and swallowed, is a request already.

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
        if _raised.number:
            request.number, request.at = _raised.number, _raised.at
            first(request.number)
        yield request


@contextmanager
def stops_raised() -> Iterator[None]:
    """Raise `StopSignal` for SIGTERM and SIGHUP while the block runs, as Python does for Ctrl-C.

    Where one of the three comes while Python ignores exceptions, as in a `__del__`, it is raised again after that.
    """
    global _raised
    before, hook, again = _raised, sys.unraisablehook, _Again(sys.unraisablehook)

    def first(number: int) -> None:
        if again.may_raise():
            raise StopSignal(number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if again.may_raise():
            again.request.number, again.request.at = number, time.monotonic()
            signal.default_int_handler(number, frame)

    with _caught((signal.SIGTERM, signal.SIGHUP), again.request, first), _ctrl_c(interrupt):
        _raised, sys.unraisablehook = again.request, again
        try:
            yield
        finally:
            _raised, sys.unraisablehook = before, hook
            again.may_raise()


class _Again:
    """Takes what Python ignores, and sends a signal again if it was the exception of one; a `sys.unraisablehook`.

    Args:
        hook: what takes every other exception.
    """

    def __init__(self, hook: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self.request, self._hook = StopRequest(), hook
        self._is_at_work, self._raised = False, threading.Event()

    def __call__(self, unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not isinstance(error, (StopSignal, KeyboardInterrupt)):
            self._hook(unraisable)
            return
        self._is_at_work, self._raised, self.request.number = True, threading.Event(), 0
        number = error.number if isinstance(error, StopSignal) else signal.SIGINT
        threading.Thread(target=self._send, args=(number, self._raised), daemon=True).start()
        self._is_at_work = False

    def may_raise(self) -> bool:
        """Tell whether an exception would get out of here, and send none again if it does."""
        if self._is_at_work:
            self.request.number = 0
        else:
            self._raised.set()
        return not self._is_at_work

    @staticmethod
    def _send(number: int, raised: threading.Event) -> None:
        while not raised.wait(_AGAIN_SECONDS):
            os.kill(os.getpid(), number)


def raised_stop() -> int:
    """Return the signal that was raised, should it have been swallowed where we are asked; 0 if there was none."""
    return _raised.number


@contextmanager
def _ctrl_c(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT otherwise while the block runs, where Python would raise it."""
    is_raised = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_raised or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
