"""A reward that is the user's own Python function; it runs with all their rights."""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from alignkit.config import OnError
from alignkit.data.formats import load_function
from alignkit.errors import AlignkitError, RewardError, did_you_mean

_CALLED = "it is called (prompts, completions, **columns) and returns a list of numbers"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_function(name: str, place: str) -> list[str]:
    """What is wrong with a function before it is called, one line each."""
    try:
        function = load_function(name, place)
    except AlignkitError as error:
        return list(error.problems)
    if inspect.iscoroutinefunction(function):
        return [f"{place}: {name} is asynchronous: {_CALLED}, without async"]
    parameters = list(inspect.signature(function).parameters.values())
    takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if sum(p.kind in _POSITIONAL for p in parameters) < 2 and not takes_any:
        shown = f"{name.rpartition(':')[2]}{inspect.signature(function)}"
        return [f"{place}: {shown} has the wrong signature: {_CALLED}"]
    return []


def check_columns(name: str, columns: Sequence[str], place: str) -> list[str]:
    """One line for each column that the function asks for and no row has."""
    return [
        f"{place}: {name} asks for '{parameter.name}', which is no column of the prompts"
        + (did_you_mean(parameter.name, columns) or f"; they have {', '.join(columns) or 'none'}")
        for parameter in _further(load_function(name, place))
        if parameter.default is inspect.Parameter.empty and parameter.name not in columns
    ]


def _further(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters after prompts and completions that are named."""
    parameters = list(inspect.signature(function).parameters.values())
    named = [p for p in parameters if p.kind in _POSITIONAL]
    return [*named[2:], *(p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)]


class PythonFunction:
    """A reward function, called in batches with a time-out."""

    def __init__(self, name: str, place: str, *, timeout: float, on_error: OnError) -> None:
        self.name, self.place, self.timeout, self.on_error = name, place, timeout, on_error
        self.function = load_function(name, place)
        parameters = inspect.signature(self.function).parameters.values()
        self.takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self.wanted = [p.name for p in _further(self.function)]

    def score(self, samples: Sequence[Any]) -> list[float | None]:
        """Scores as the function gave them, numpy's and torch's numbers as Python's.

        Raises:
            RewardError: it raised, took too long or returned another number of scores, and `on_error` is stop.
        """
        try:
            return self._call(samples)
        except RewardError as error:
            return self._one_by_one(samples, error)

    def _one_by_one(self, samples: Sequence[Any], error: RewardError) -> list[float | None]:
        """Find the sample that it fails on; where it may be skipped, the others keep their scores."""
        scores: list[float | None] = []
        for sample in samples if len(samples) > 1 else ():
            try:
                scores += self._call([sample])
            except RewardError as alone:
                if self.on_error is OnError.stop:
                    raise RewardError(
                        f"{alone}; the sample is {sample.prompt.source}, prompt {sample.prompt.text[:60]!r}, "
                        f"completion {sample.completion[:60]!r}"
                    ) from alone
                scores.append(None)
        if self.on_error is OnError.stop:  # it fails on no single sample, or there was only one
            (first, *_) = samples
            raise RewardError(f"{error}; the first of its {len(samples)} samples is {first.prompt.source}") from error
        return scores or [None] * len(samples)

    def _call(self, samples: Sequence[Any]) -> list[float | None]:
        prompts, completions = [s.prompt.text for s in samples], [s.completion for s in samples]
        rows = [s.prompt.columns for s in samples]
        names = list(dict.fromkeys(key for row in rows for key in row)) if self.takes_all else self.wanted
        there = {name for row in rows for name in row}
        columns = {
            name: [row.get(name) for row in rows]
            for name in names
            if name in there and name not in ("prompts", "completions")
        }
        returned = self._in_time(lambda: self.function(prompts, completions, **columns))
        try:
            scores = [value.item() if hasattr(value, "item") else value for value in returned]
        except TypeError as error:
            raise RewardError(f"{self.place}: {self.name} returned {type(returned).__name__}: {_CALLED}") from error
        if len(scores) != len(samples):
            raise RewardError(
                f"{self.place}: {self.name} returned {len(scores)} scores for {len(samples)} completions: {_CALLED}"
            )
        return scores

    def _in_time(self, call: Callable[[], Any]) -> Any:
        # A daemon: a function that never returns must not keep the process from ending.
        answers: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

        def work() -> None:
            try:
                answers.put((call(), None))
            except BaseException as error:  # the user's code may raise anything
                answers.put((None, error))

        threading.Thread(target=work, daemon=True, name=self.name).start()
        try:
            returned, error = answers.get(timeout=self.timeout)
        except queue.Empty:
            raise RewardError(
                f"{self.place}: {self.name} took longer than {self.timeout:g} seconds; raise {self.place}.timeout"
            ) from None
        if error is not None:
            raise RewardError(f"{self.place}: {self.name} raised {type(error).__name__}: {error}") from error
        return returned
