"""Worker processes of a reward function: a call that hangs or dies ends its worker, and never the run."""

from __future__ import annotations

import signal
import sys
import weakref
from collections.abc import Generator, Sequence
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.popen_spawn_posix import Popen
from threading import Thread
from types import ModuleType
from typing import Any

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from alignkit.rewards import worker
from alignkit.rewards.worker import Call, Failure, Outcome, Setup, Signature, took_too_long

_GRACE = 1.0  # seconds


class _Popen(Popen):
    def _launch(self, process_obj: Any) -> None:
        # A worker needs nothing of the program that trains, which may be a script that would train once more.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            super()._launch(process_obj)  # type: ignore[misc]  # typeshed leaves out private methods
        finally:
            sys.modules["__main__"] = main

    def terminate(self) -> None:
        self.kill()  # what hangs need not listen


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Popen:
        return _Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process


class Workers:
    """Processes that call one function.

    Each is a pool of its own: which worker a call goes to is a matter of its index alone, and a worker that dies leaves
    the others' pipes as they were.

    Args:
        setup: what they call.
        num: of processes.
    """

    def __init__(self, setup: Setup, num: int) -> None:
        self._setup = setup
        self._pools = [self._start() for _ in range(num)]
        self.close = weakref.finalize(self, _stop, self._pools)

    def _start(self) -> ProcessPool:
        return ProcessPool(max_workers=1, initializer=worker.begin, initargs=(self._setup,), context=_Context())

    def signature(self) -> Signature | str:
        """Import the function in every worker; return how it is called, or a line that says what is wrong with it."""
        futures = [pool.schedule(worker.read_signature) for pool in self._pools]
        try:
            found, *_ = [future.result() for future in futures]
        except (ProcessExpired, BrokenProcessPool) as error:
            return f"{self._setup.setting}: importing the function {_ended(error)}"
        return found

    def run(self, calls: Sequence[Call], *, seconds: float, together: bool = False) -> Generator[Outcome]:
        """Yield the outcome of each call, in order; where the caller stops early, the rest is ended.

        Args:
            calls: of the function.
            seconds: that each may take.
            together: the function is asynchronous; the calls of a worker are awaited beside each other.
        """
        num = len(self._pools)
        if together:
            tasks = [range(first, len(calls), num) for first in range(min(num, len(calls)))]
        else:
            tasks = [range(index, index + 1) for index in range(len(calls))]
        futures = [
            self._schedule(number % num, [calls[index] for index in task], seconds) for number, task in enumerate(tasks)
        ]
        found: dict[int, Outcome] = {}
        try:
            for index in range(len(calls)):
                if index not in found:
                    number = index % num if together else index
                    found |= zip(tasks[number], _outcomes(futures[number], len(tasks[number]), seconds), strict=True)
                yield found.pop(index)
        finally:
            for future in futures:
                future.cancel()

    def _schedule(self, number: int, calls: Sequence[Call], seconds: float) -> ProcessFuture[list[Outcome]]:
        if not self._pools[number].active:  # its worker died between two calls
            self._pools[number] = self._start()
        pool = self._pools[number]
        pool.schedule(worker.read_signature)  # a new worker imports in its own time, not in that of a call
        # Calls of one loop end themselves, but where one of them blocks it.
        limit = seconds if len(calls) == 1 else seconds + _GRACE
        return pool.schedule(worker.call, args=(calls, seconds), timeout=limit)


def _outcomes(future: ProcessFuture[list[Outcome]], num: int, seconds: float) -> list[Outcome]:
    try:
        return future.result()
    except TookTooLong:
        reason = took_too_long(seconds)
    except (ProcessExpired, BrokenProcessPool) as error:
        reason = _ended(error)
    return [Failure(reason, ended_worker=True)] * num


def _ended(error: Exception) -> str:
    """Say how a worker ended."""
    code = error.exitcode if isinstance(error, ProcessExpired) else 0
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}, as the system does where memory runs out"
    return f"ended its process with exit status {code}" if code else "ended its process"


def _stop(pools: Sequence[ProcessPool]) -> None:
    for pool in pools:
        pool.stop()
    for pool in pools:
        try:
            pool.join()
        except RuntimeError:  # collected by a thread of the pool's own, which cannot wait for its own end
            Thread(target=pool.join, daemon=True).start()
