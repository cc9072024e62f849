"""What runs in the worker process of a reward function; nothing heavy is imported but by the function itself."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError
from alignkit.user_functions import load_function


@dataclass(frozen=True)
class Setup:
    """What a worker calls.

    Attributes:
        setting: where the function was named, for messages.
        function: `module:function`, `file.py:function`, or a pickled function of Python's.
        fixed: keyword arguments of every call.
    """

    setting: str
    function: str | bytes
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a reward function."""

    prompts: Sequence[str]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Failure:
    """A call without scores.

    Attributes:
        reason: what happened, behind the name of the function.
        ended_worker: it took its worker along, and every call that ran beside it.
    """

    reason: str
    ended_worker: bool = False


@dataclass(frozen=True)
class NoNumber:
    """A value in place of a score, which need not be one that can be sent to another process."""

    text: str

    def __repr__(self) -> str:
        return self.text


Outcome = list[Any] | Failure
CALLED = "it is called (prompts, completions, **columns) and returns a list of numbers"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function."""

    name: str
    kind: inspect._ParameterKind
    has_default: bool


@dataclass(frozen=True)
class Signature:
    """A function as a worker imported it; `parameters` are None where Python cannot read them."""

    text: str
    parameters: tuple[Parameter, ...] | None
    is_async: bool


_setup: Setup


def begin(setup: Setup) -> None:
    """Prepare a new worker; what imports the function comes later, where it may fail."""
    global _setup
    _setup = setup
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a batch system signals every process; the run then stops in order
    # Where memory runs out, the kernel is to end the worker and not the run.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@lru_cache
def _function() -> Callable[..., Any]:
    """The function, imported once a worker: its state lives as long as the worker does."""
    if isinstance(_setup.function, str):
        return partial(load_function(_setup.function, _setup.setting), **_setup.fixed)
    function: Callable[..., Any] = pickle.loads(_setup.function)
    return function


def read_signature() -> Signature | str:
    """Import the function; return how it is called, or what is wrong with it."""
    try:
        function = _function()
    except ConfigError as error:
        return str(error)
    except BaseException as error:  # the user's code may raise anything
        return f"{_setup.setting}: the function cannot be imported in a worker process: {type(error).__name__}: {error}"
    is_async = _is_async(function)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none that Python can read
        return Signature("", None, is_async)
    parameters = signature.parameters.values()
    empty = inspect.Parameter.empty
    return Signature(
        str(signature), tuple(Parameter(one.name, one.kind, one.default is not empty) for one in parameters), is_async
    )


def call(calls: Sequence[Call], seconds: float) -> list[Outcome]:
    """Call the function: once after the other or, where it is asynchronous, beside each other, each for its seconds."""

    async def gather() -> list[Outcome]:
        return await asyncio.gather(*(_awaited(one, seconds) for one in calls))

    _seed(calls[0])
    return _loop().run(gather()) if _is_async(_function()) else [_called(one) for one in calls]


def _called(one: Call) -> Outcome:
    _seed(one)
    try:
        return _read(_function()(one.prompts, one.completions, **one.columns), len(one.completions))
    except BaseException as error:  # the user's code may raise anything
        return _raised(error)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


@lru_cache
def _loop() -> asyncio.Runner:
    """One loop for all calls: the connections that a client keeps open belong to it."""
    return asyncio.Runner()


async def _awaited(one: Call, seconds: float) -> Outcome:
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            returned = await _function()(one.prompts, one.completions, **one.columns)
            return _read(returned, len(one.completions))
    except BaseException as error:  # the user's code may raise anything
        return Failure(took_too_long(seconds)) if limit.expired() else _raised(error)


def took_too_long(seconds: float) -> str:
    return f"took longer than {seconds:g} seconds"


def _raised(error: BaseException) -> Failure:
    return Failure(f"raised {type(error).__name__}: {error}")


def _seed(one: Call) -> None:
    """Seed what a function may draw from by what it is asked: the same in a run that is resumed, by any worker."""
    digest = hashlib.sha256(repr((one.prompts, one.completions)).encode(errors="surrogatepass")).digest()
    seed = int.from_bytes(digest[:4])
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


def _read(returned: Any, num: int) -> Outcome:
    """The values that a function returned; a generator runs here."""
    try:
        there = iter(returned)
    except TypeError:
        return Failure(f"returned {type(returned).__name__}: {CALLED}")
    values = [_plain(value) for value in there]
    if len(values) != num:
        return Failure(f"returned {len(values)} scores for {num} completions: {CALLED}")
    return values


def _plain(value: Any) -> Any:
    """An array or a tensor of one number as that number; what is none is sent as its words."""
    with suppress(RuntimeError, TypeError, ValueError):  # it holds several
        value = value.item() if hasattr(value, "item") else value
    return value if value is None or type(value) in (bool, int, float) else NoNumber(repr(value)[:200])
