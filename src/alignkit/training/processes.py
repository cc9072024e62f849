"""Processes that have trained together part before each of them ends."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch re-exports them without an __all__

from alignkit.errors import Interrupted, TrainingError


@contextmanager
def parted_at_exit() -> Iterator[None]:
    """Close the connections to the other processes at this one's exit, if the block ends as it does in all of them.

    Left to the interpreter, they are torn down while threads still use them: now and then a process aborts after its
    result is written ("terminate called without an active exception"), and the launcher takes the run for a failed one.
    After an error nothing is closed: another process may be waiting for this one, which closing would join.

    To close is not enough. A thread of gloo that lets go of a tensor made in Python asks for the interpreter's lock,
    and Python before 3.14 ends a thread that asks while the interpreter ends, which C++ answers with the abort. These
    threads end with the group, and a group that shards weights never ends: DTensor's caches keep its device mesh, and
    so does a model that a program still holds. So the exit waits, however it came, until none of them is at work.
    """
    atexit.unregister(_await_gloo)
    atexit.register(_await_gloo)  # before `_part`: the last that is registered is the first that is called
    atexit.unregister(_part)  # of an earlier run of a sweep
    try:
        yield
    except Interrupted:
        _part_at_exit()
        raise
    _part_at_exit()


def meet_again() -> None:
    """Connect the processes that an elastic launcher has started again, after one of them had ended.

    They meet in the launcher's store, which still has the addresses of the processes that are gone: torch takes it that
    every attempt has a store of its own, and a process that comes before the main one calls a dead one (gloo:
    "connectFullMesh failed"). Under a prefix of the attempt's the store is empty.
    """
    attempt, env = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ
    if attempt == "0" or env.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or torch.distributed.is_initialized():
        return
    rank, world_size = int(env["RANK"]), int(env["WORLD_SIZE"])
    store = TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), world_size, is_master=False)
    kind = getattr(torch.accelerator.current_accelerator(), "type", "cpu")
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(kind),
        store=PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world_size,
    )


@contextmanager
def explain_lost_process(doing: Callable[[], str]) -> Iterator[None]:
    """Say in one line that another process is gone, where the exchange with it raises that.

    Args:
        doing: what was going on.

    Raises:
        TrainingError: the connection broke.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            why = " ".join(str(error).split())[:200]
            raise TrainingError(
                f"{doing()}: the connection to another process broke, which says why if it could; resume=true goes on "
                f"from the newest checkpoint ({why})"
            ) from error
        raise


def _part_at_exit() -> None:
    # At exit, not here: the next run of a sweep goes on with the same connections.
    atexit.unregister(_part)
    atexit.register(_part)


def _part() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _await_gloo() -> None:
    for _ in range(1000):
        time.sleep(0.01)  # the interpreter's lock is free meanwhile: whoever waits for it gets on
        if not _gloo_works():
            return


def _gloo_works() -> bool:
    """Whether a thread that runs gloo's collectives is awake; where the system does not tell (not Linux), none is."""
    stats = []
    for file in Path("/proc/self/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            stats.append(file.read_text())  # "4711 (pt_gloo_runloop) S …"
    return any("(pt_gloo_runloop) " in stat and "(pt_gloo_runloop) S" not in stat for stat in stats)
