"""A reward that is the user's own Python function; it runs in processes of its own, with all the user's rights."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cloudpickle

from alignkit.choices import OnError
from alignkit.errors import RewardError, did_you_mean
from alignkit.rewards import verifiers
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import RewardSource
from alignkit.rewards.worker import CALLED, Call, Failure, Outcome, Parameter, Setup, Signature, took_too_long
from alignkit.rewards.workers import Workers

logger = logging.getLogger(__name__)

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# What a check has started is for the scorer to come: a function's file is imported once a worker.
_started: dict[tuple[str, str | int, str], tuple[Workers, Signature]] = {}


def check_function(source: RewardSource) -> list[str]:
    """Find what is wrong with a function before it is called, one line each; worker processes import it."""
    if earlier := _started.pop(_key(source), None):
        earlier[0].close()  # its file may have changed since
    try:
        workers, signature = _start(source)
    except RewardError as error:
        return list(error.problems)
    if problems := _problems(source, signature):
        del _started[_key(source)]
        workers.close()
    return problems


def _start(source: RewardSource) -> tuple[Workers, Signature]:
    if _key(source) not in _started:
        workers = Workers(_setup(source), source.num_proc)
        signature = workers.signature()
        if isinstance(signature, str):
            workers.close()
            raise RewardError(signature)
        _started[_key(source)] = workers, signature
    return _started[_key(source)]


def _key(source: RewardSource) -> tuple[str, str | int, str]:
    function = id(source.function) if callable(source.function) else source.name
    return source.setting, function, str(Path.cwd())  # a file of the same name elsewhere is another one


def _setup(source: RewardSource) -> Setup:
    if source.verifier:
        given = {key: getattr(source, key) for key in ("pattern", "min", "max")}
        fixed = {key: value for key, value in given.items() if value is not None}
        return Setup(source.setting, f"{verifiers.__name__}:{source.verifier}", fixed)
    if not callable(source.function):
        return Setup(source.setting, source.name)
    try:
        return Setup(source.setting, cloudpickle.dumps(source.function))
    except Exception as error:  # what it closes over may refuse in any way
        raise RewardError(
            f"{source.setting}: {source.name} cannot be sent to a worker process: {type(error).__name__}: {error}; "
            "let it make such an object when it is first called"
        ) from error


def _problems(source: RewardSource, signature: Signature) -> list[str]:
    if signature.parameters is None:
        return [
            f"{source.setting}: {source.name} has no signature to read; call it in a function of your own: {CALLED}"
        ]
    takes_any = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in signature.parameters)
    if sum(one.kind in _POSITIONAL for one in signature.parameters) < 2 and not takes_any:
        shown = f"{source.name.rpartition(':')[2]}{signature.text}"
        return [f"{source.setting}: {shown} has the wrong signature: {CALLED}"]
    return []


def check_columns(source: RewardSource, columns: Sequence[str]) -> list[str]:
    """Return one line for each column that the function takes and no row has."""
    _, signature = _start(source)
    needed = [one.name for one in _columns_of(signature) if not one.has_default and one.name not in columns]
    who = f"{source.setting}: {source.name} asks for"
    if source.is_option:
        return [f"{who} '{name}', and gets prompts and completions alone here: give it a default" for name in needed]
    return [
        f"{who} '{name}', which is no column of the prompts"
        + (did_you_mean(name, columns) or f"; they have {', '.join(columns) or 'none'}")
        for name in needed
    ]


def _columns_of(signature: Signature) -> list[Parameter]:
    """The named parameters after prompts and completions: the columns that it takes."""
    parameters = signature.parameters or ()
    named = [one for one in parameters if one.kind in _POSITIONAL]
    return [*named[2:], *(one for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY)]


class FunctionScorer:
    """A reward function, called in batches with a time-out; no completion is too long for it."""

    num_cut = 0

    def __init__(self, source: RewardSource) -> None:
        self.source = source
        self.workers, signature = _start(source)
        del _started[_key(source)]
        self.is_async = signature.is_async
        self.takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters or ())
        self.wanted = [] if source.verifier else [one.name for one in _columns_of(signature)]
        self.may_skip = source.on_error is OnError.skip
        self.has_warned = False

    def close(self) -> None:
        """End the workers."""
        self.workers.close()

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """Call the function in batches; numbers of numpy and torch become Python's, what may fail its `Failure`.

        Raises:
            RewardError: it raised, took too long, ended its process or returned another number of scores, and
                `on_error` is stop.
        """
        size = self.source.batch_size
        cuts = [samples[start : start + size] for start in range(0, len(samples), size)]
        scores: list[Any] = []
        for cut, outcome in zip(cuts, self._outcomes(cuts, together=self.is_async), strict=False):
            scores += self._one_by_one(cut, outcome) if isinstance(outcome, Failure) else outcome
        return scores

    def _outcomes(self, cuts: Sequence[Sequence[Sample]], *, together: bool) -> list[Outcome]:
        """The outcome of each call, up to the first failure where that stops the run."""
        found: list[Outcome] = []
        calls = [self._call(cut) for cut in cuts]
        with closing(self.workers.run(calls, seconds=self.source.timeout, together=together)) as outcomes:
            for outcome in outcomes:
                found.append(outcome)
                if isinstance(outcome, Failure) and not self.may_skip:
                    break
        return found

    def _call(self, samples: Sequence[Sample]) -> Call:
        rows = [sample.columns for sample in samples]
        there = dict.fromkeys(key for row in rows for key in row)
        names = [name for name in there if name not in ("prompts", "completions")]
        columns = {name: [row.get(name) for row in rows] for name in names if self.takes_all or name in self.wanted}
        if self.source.answer is not None:
            columns["answers"] = [str(row.get(self.source.answer)) for row in rows]
        return Call([sample.prompt for sample in samples], [sample.completion for sample in samples], columns)

    def _one_by_one(self, samples: Sequence[Sample], failure: Failure) -> list[Any]:
        """Find the sample that it fails on; where it may be skipped, the others keep their scores."""
        alone: list[Outcome] = [failure]
        if len(samples) > 1:
            together = self.is_async and not failure.ended_worker
            alone = self._outcomes([[sample] for sample in samples], together=together)
        scores: list[Any] = []
        for sample, outcome in zip(samples, alone, strict=False):
            if isinstance(outcome, Failure):
                self._skip(f"{self._said(outcome)}; the sample is {sample}")
                outcome = [outcome]
            scores += outcome
        if not self.may_skip:  # it fails on no single sample
            raise RewardError(f"{self._said(failure)}; the first of its {len(samples)} samples is {samples[0].source}")
        return scores

    def _skip(self, failure: str) -> None:
        """Log the first of the failures that are skipped; the others are counted."""
        if not self.may_skip:
            raise RewardError(failure)
        if not self.has_warned:
            logger.warning("%s: such completions are left out (on_error: skip)", failure)
        self.has_warned = True

    def _said(self, failure: Failure) -> str:
        way_out = ""
        if failure.reason == took_too_long(self.source.timeout):
            way_out = "; lower batch_size" if self.source.is_option else f"; raise {self.source.setting_of('timeout')}"
        return f"{self.source.setting}: {self.source.name} {failure.reason}{way_out}"
