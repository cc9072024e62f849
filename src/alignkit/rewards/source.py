"""Reward sources: from the setting `reward` of a job, or the option `--reward` of a command."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from alignkit.choices import OnError
from alignkit.errors import RewardError, as_yaml, did_you_mean
from alignkit.models.source import local_folder
from alignkit.rewards.verifiers import KEYS, VERIFIERS, key_mistakes
from alignkit.user_functions import function_name

_OPTION = "--reward"
_KINDS = ("function", "classifier", "model", "verifier")
_CALLED = ("function", "verifier")
_ONLY_FOR = {
    "label": ("classifier",),
    "output": ("classifier",),
    "timeout": _CALLED,
    "num_proc": _CALLED,
    "standardise": ("model",),
    **dict.fromkeys(KEYS, ("verifier",)),
}
_OUTPUTS = ("probability", "logit")


@dataclass(frozen=True, slots=True)
class RewardSource:
    """One reward; exactly one of `function`, `classifier`, `model` and `verifier` is given.

    Attributes:
        setting: where it was set, such as `reward[0]`.
        function: `file.py:function`, `module:function` or, in Python, the function itself; called
            `(prompts, completions, **columns) -> list[float]`.
        classifier: a hub id or folder of a text classifier.
        model: a run directory of `alignkit reward`.
        verifier: the name of one of `VERIFIERS`.
        label: of the classifier, whose score counts.
        output: of the classifier: the label's probability, or its logit.
        standardise: of a reward run: subtract the mean of its held-out scores, divide by their standard deviation.
        weight: what its scores are multiplied by; may be negative.
        on_error: whether an exception, None or NaN stops the run, or leaves the completion out of the update, counted.
        timeout: seconds a call of the function may take.
        batch_size: completions in one call.
        num_proc: processes that call the function.
        answer: column of the rows with the answers of a verifier.
        pattern: regular expression of a verifier.
        min: fewest characters of a verifier of lengths.
        max: most of them.
    """

    setting: str
    function: str | Callable[..., Any] | None = None
    classifier: str | None = None
    model: str | None = None
    verifier: str | None = None
    label: str | None = None
    output: str = "probability"
    standardise: bool = False
    weight: float = 1.0
    on_error: OnError = OnError.stop
    timeout: float = 60.0
    batch_size: int = 32
    num_proc: int = 1
    answer: str | None = None
    pattern: str | None = None
    min: int | None = None
    max: int | None = None

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def name(self) -> str:
        """What the source is called in metrics and messages."""
        return function_name(getattr(self, self.kind))

    @property
    def is_option(self) -> bool:
        """It was given on the command line, where a source has a name and nothing else can be set."""
        return self.setting == _OPTION

    def setting_of(self, key: str) -> str:
        """Return where one of its keys was set, such as `reward[0].label`."""
        return self.setting if self.is_option else f"{self.setting}.{key}"


def parse_rewards(reward: Sequence[Any]) -> list[RewardSource]:
    """Parse the setting `reward`.

    Raises:
        RewardError: one line for each mistake in its keys and values.
    """
    problems, sources = [], []
    if not reward:
        problems.append("reward is missing: give a list of sources, such as reward: [{function: my_rewards.py:polite}]")
    for index, item in enumerate(reward):
        setting = f"reward[{index}]"
        mistakes = _mistakes(item, setting)
        problems += mistakes
        if not mistakes:
            given = {**item, "on_error": OnError(item.get("on_error", OnError.stop))}
            sources.append(RewardSource(setting=setting, **given))
    if problems:
        raise RewardError(*problems)
    return sources


def with_function_named(item: Any) -> Any:
    """Return an item of the setting `reward` as it is recorded: a function of Python's as its name."""
    function = item.get("function") if isinstance(item, Mapping) else None
    return {**item, "function": function_name(function)} if callable(function) else item


def parse_option(name: str, *, batch_size: int) -> RewardSource:
    """Parse the option `--reward`: `file.py:function`, `classifier#label`, or a run of `alignkit reward`.

    Args:
        name: as it was typed; a folder of just this name is a reward run.
        batch_size: completions scored together.
    """
    before, mark, label = name.partition("#")
    if local_folder(name) is not None or not (mark or ":" in name):
        return RewardSource(_OPTION, model=name, batch_size=batch_size)
    if mark:
        return RewardSource(_OPTION, classifier=before, label=label, batch_size=batch_size)
    return RewardSource(_OPTION, function=name, batch_size=batch_size)


def _mistakes(item: Any, setting: str) -> list[str]:
    if callable(item):
        called = getattr(item, "__name__", "")
        written = called if called.isidentifier() else "…"
        return [f"{setting} is the function {function_name(item)}: give it as {{'function': {written}}}"]
    if not isinstance(item, Mapping):
        return [f"{setting} is {as_yaml(item)}: it must be a source, such as {_meant(item)}"]
    known = [entry.name for entry in fields(RewardSource) if entry.name != "setting"]
    problems = [f"{setting}: unknown key '{key}'{did_you_mean(str(key), known)}" for key in item if key not in known]
    kinds = [kind for kind in _KINDS if item.get(kind) is not None]
    if len(kinds) != 1:
        problems.append(f"{setting} names {' and '.join(kinds) or 'no source'}: give one of {', '.join(_KINDS)}")
    for key, having in _ONLY_FOR.items():
        if item.get(key) is not None and kinds and kinds[0] not in having:
            problems.append(f"{setting}.{key} has no effect on a {kinds[0]}: only a {' or a '.join(having)} has it")
    problems += [
        f"{setting}.{key} is {as_yaml(item[key])}: it must be a name"
        for key in (*_KINDS, "label", "answer")
        if not _is_name(item.get(key)) and not (key == "function" and callable(item[key]))
    ]
    problems += [
        f"{setting}.{key} is {as_yaml(item[key])}: it must be {words}"
        for key, words in (("weight", "a number other than 0"), ("timeout", "seconds above 0"))
        if key in item and not _is_number(item[key], above_zero=key == "timeout")
    ]
    if not isinstance(item.get("standardise", False), bool):
        problems.append(f"{setting}.standardise is {as_yaml(item['standardise'])}: it must be true or false")
    for key in ("batch_size", "num_proc"):
        size = item.get(key, 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            problems.append(f"{setting}.{key} is {as_yaml(size)}: it must be a whole number above 0")
    for key, choices in (("on_error", [str(member) for member in OnError]), ("output", list(_OUTPUTS))):
        if key in item and item[key] not in choices:
            problems.append(f"{setting}.{key} is {as_yaml(item[key])}: choose {', '.join(choices)}")
    if kinds == ["classifier"] and item.get("label") is None:
        problems.append(f"{setting}.label is missing: which label's score is the reward?")
    if kinds == ["verifier"] and isinstance(item["verifier"], str):
        problems += _verifier_mistakes(item, setting)
    return problems


def _verifier_mistakes(item: Mapping[str, Any], setting: str) -> list[str]:
    if verifier := VERIFIERS.get(item["verifier"]):
        return key_mistakes(item, setting, verifier)
    guess = did_you_mean(item["verifier"], VERIFIERS) or f": choose {', '.join(VERIFIERS)}"
    return [f"{setting}.verifier is {as_yaml(item['verifier'])}{guess}"]


def _meant(item: Any) -> str:
    """Write the source that a text stands for, as `parse_option` reads it."""
    before, mark, label = str(item).partition("#")
    if mark:
        return f"{{classifier: {before}, label: {label}}}"
    return f"{{function: {item if isinstance(item, str) and ':' in item else 'my_rewards.py:polite'}}}"


def _is_name(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(value.strip()))


def _is_number(value: Any, *, above_zero: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return value > 0 if above_zero else value != 0
