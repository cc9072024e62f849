"""A reward that is the user's own Python function; it runs with all their rights."""

from __future__ import annotations

import inspect
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from alignkit.config import OnError
from alignkit.errors import AlignkitError, RewardError, did_you_mean
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import RewardSource
from alignkit.user_functions import load_function

logger = logging.getLogger(__name__)

_CALLED = "it is called (prompts, completions, **columns) and returns a list of numbers"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_function(source: RewardSource) -> list[str]:
    """Find what is wrong with a function before it is called, one line each."""
    try:
        function = _loaded(source)
    except AlignkitError as error:
        return list(error.problems)
    if inspect.iscoroutinefunction(function):
        return [f"{source.setting}: {source.name} is asynchronous: {_CALLED}, without async"]
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none that Python can read
        return [
            f"{source.setting}: {source.name} has no signature to read; call it in a function of your own: {_CALLED}"
        ]
    parameters = list(signature.parameters.values())
    takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if sum(p.kind in _POSITIONAL for p in parameters) < 2 and not takes_any:
        shown = f"{source.name.rpartition(':')[2]}{signature}"
        return [f"{source.setting}: {shown} has the wrong signature: {_CALLED}"]
    return []


def _loaded(source: RewardSource) -> Callable[..., Any]:
    return source.function if callable(source.function) else load_function(source.name, source.setting)


def check_columns(source: RewardSource, columns: Sequence[str]) -> list[str]:
    """Return one line for each column that the function takes and no row has."""
    parameters = _columns_of(_loaded(source))
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.name not in columns]
    who = f"{source.setting}: {source.name} asks for"
    if source.is_option:
        return [f"{who} '{name}', and gets prompts and completions alone here: give it a default" for name in needed]
    return [
        f"{who} '{name}', which is no column of the prompts"
        + (did_you_mean(name, columns) or f"; they have {', '.join(columns) or 'none'}")
        for name in needed
    ]


def _columns_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The named parameters after prompts and completions: the columns that it takes."""
    parameters = list(inspect.signature(function).parameters.values())
    named = [p for p in parameters if p.kind in _POSITIONAL]
    return [*named[2:], *(p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)]


class FunctionScorer:
    """A reward function, called in batches with a time-out; no completion is too long for it."""

    num_cut = 0

    def __init__(self, source: RewardSource) -> None:
        self.source = source
        self.function = _loaded(source)
        parameters = inspect.signature(self.function).parameters.values()
        self.takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self.wanted = [p.name for p in _columns_of(self.function)]
        self.has_warned = False

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """Call the function in batches; numbers of numpy and torch become Python's.

        Raises:
            RewardError: it raised, took too long or returned another number of scores, and `on_error` is stop.
        """
        size = self.source.batch_size
        cuts = [samples[start : start + size] for start in range(0, len(samples), size)]
        return [score for cut in cuts for score in self._together(cut)]

    def _together(self, samples: Sequence[Sample]) -> list[Any]:
        try:
            return self._call(samples)
        except RewardError as error:
            return self._one_by_one(samples, error)

    def _one_by_one(self, samples: Sequence[Sample], error: RewardError) -> list[Any]:
        """Find the sample that it fails on; where it may be skipped, the others keep their scores."""
        scores: list[Any] = []
        may_skip = self.source.on_error is OnError.skip
        for sample in samples if len(samples) > 1 else ():
            try:
                scores += self._call([sample])
            except RewardError as alone:
                if not may_skip:
                    raise RewardError(f"{alone}; the sample is {sample}") from alone
                self._warn_once(f"{alone}; the sample is {sample}")
                scores.append(None)
        if not may_skip:  # it fails on no single sample, or there was only one
            (first, *_) = samples
            raise RewardError(f"{error}; the first of its {len(samples)} samples is {first.source}") from error
        if not scores:
            self._warn_once(f"{error}; the sample is {samples[0]}")
        return scores or [None] * len(samples)

    def _warn_once(self, failure: str) -> None:
        """Log the first of the failures that are skipped; the others are counted."""
        if not self.has_warned:
            logger.warning("%s: such completions are left out (on_error: skip)", failure)
        self.has_warned = True

    def _call(self, samples: Sequence[Sample]) -> list[Any]:
        prompts, completions = [sample.prompt for sample in samples], [sample.completion for sample in samples]
        rows = [sample.columns for sample in samples]
        names = list(dict.fromkeys(key for row in rows for key in row)) if self.takes_all else self.wanted
        there = {name for row in rows for name in row}
        columns = {
            name: [row.get(name) for row in rows]
            for name in names
            if name in there and name not in ("prompts", "completions")
        }
        scores: list[Any] | None
        kind, scores = self._call_in_time(lambda: _read(self.function(prompts, completions, **columns)))
        who = f"{self.source.setting}: {self.source.name}"
        if scores is None:
            raise RewardError(f"{who} returned {kind}: {_CALLED}")
        if len(scores) != len(samples):
            raise RewardError(f"{who} returned {len(scores)} scores for {len(samples)} completions: {_CALLED}")
        return scores

    def _call_in_time(self, call: Callable[[], Any]) -> Any:
        # A daemon: a function that never returns must not keep the process from ending.
        results: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()

        def work() -> None:
            try:
                results.put((call(), None))
            except BaseException as error:  # the user's code may raise anything
                results.put((None, error))

        threading.Thread(target=work, daemon=True, name=self.source.name).start()
        who, seconds = f"{self.source.setting}: {self.source.name}", self.source.timeout
        try:
            returned, error = results.get(timeout=seconds)
        except queue.Empty:
            way_out = "lower batch_size" if self.source.is_option else f"raise {self.source.setting_of('timeout')}"
            raise RewardError(f"{who} took longer than {seconds:g} seconds; {way_out}") from None
        if error is not None:
            raise RewardError(f"{who} raised {type(error).__name__}: {error}") from error
        return returned


def _read(returned: Any) -> tuple[str, list[Any] | None]:
    """The type of what a function returned, and its values, or None where it has none; a generator runs here."""
    kind = type(returned).__name__
    try:
        values = iter(returned)
    except TypeError:
        return kind, None
    return kind, [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """An array or a tensor of one number as that number."""
    try:
        return value.item() if hasattr(value, "item") else value
    except (RuntimeError, TypeError, ValueError):  # it holds several
        return value
