"""Where scores come from: a list of sources with weights, whose weighted scores add up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch

from alignkit.config import OnError
from alignkit.data.prompts import Prompt
from alignkit.errors import AlignkitError, RewardError, did_you_mean
from alignkit.ppo.classifier_reward import Classifier, check_classifier
from alignkit.ppo.function_reward import PythonFunction, check_columns, check_function
from alignkit.ppo.model_reward import RewardRun, check_reward_run

__all__ = ["RewardSource", "Rewards", "Sample", "Scores", "check_rewards", "load_rewards", "parse_rewards"]

_KINDS = ("function", "classifier", "model")
_ONLY_FOR = {"label": "classifier", "output": "classifier", "timeout": "function", "standardise": "model"}
_OUTPUTS = ("probability", "logit")


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion to score.

    Attributes:
        prompt: what was asked.
        completion: the text of the answer, without the end token.
    """

    prompt: Prompt
    completion: str


@dataclass(frozen=True, slots=True)
class RewardSource:
    """One item of `reward`; exactly one of `function`, `classifier` and `model` is given.

    Attributes:
        place: where it was set, such as `reward[0]`.
        function: `file.py:function` or `module:function`, called `(prompts, completions, **columns) -> list[float]`.
        classifier: a hub id or folder of a text classifier.
        model: a run directory of `alignkit reward`.
        label: of the classifier, whose score counts.
        output: of the classifier: the label's probability, or its logit.
        standardise: of a reward run: less the mean and over the spread of its held-out scores.
        weight: what its scores are multiplied by; may be negative.
        on_error: an exception, None or NaN stops the run, or takes the completion out of the update and counts it.
        timeout: seconds a call of the function may take.
        batch_size: completions in one call.
    """

    place: str
    function: str | None = None
    classifier: str | None = None
    model: str | None = None
    label: str | None = None
    output: str = "probability"
    standardise: bool = False
    weight: float = 1.0
    on_error: OnError = OnError.stop
    timeout: float = 60.0
    batch_size: int = 32

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def name(self) -> str:
        """What the source is called in metrics and messages."""
        return str(getattr(self, self.kind))


class Scorer(Protocol):
    """One loaded source."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One score for each sample; None where it has none and the source may skip."""


@dataclass
class Scores:
    """What completions were worth.

    Attributes:
        total: weighted sums over the sources; None for a completion that a source skipped.
        by_source: of each source by its name, unweighted.
    """

    total: list[float | None]
    by_source: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass
class Rewards:
    """All sources, loaded."""

    sources: list[tuple[RewardSource, Scorer]]

    def cuts(self) -> list[str]:
        """One line for each source that could not read every answer whole."""
        return [
            f"{source.place}: {num_cut:,} answers were longer than {source.name} can read, and were cut"
            for source, scorer in self.sources
            if isinstance(scorer, _InBatches) and (num_cut := getattr(scorer.inner, "num_cut", 0))
        ]

    def other_templates(self, jinja: str, policy: str) -> list[str]:
        """One line for each reward run that was trained with another template than that of the policy, by its name."""
        return [
            f"{source.place}: {source.name} was trained with another template than {policy} answers in; it reads every "
            "answer in its own"
            for source, scorer in self.sources
            if isinstance(scorer, _InBatches)
            and isinstance(scorer.inner, RewardRun)
            and scorer.inner.jinja.strip() != jinja.strip()
        ]

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Score completions under every source.

        Raises:
            RewardError: a source failed on a sample and `on_error` is stop.
        """
        names = _distinct([source.name for source, _ in self.sources])
        by_source = {
            name: _checked(source, scorer.score(samples), samples)
            for name, (source, scorer) in zip(names, self.sources, strict=True)
        }
        weights = [source.weight for source, _ in self.sources]
        total: list[float | None] = []
        for row in zip(*by_source.values(), strict=True):
            values = [value for value in row if value is not None]
            is_whole = len(values) == len(row)
            total.append(sum(w * v for w, v in zip(weights, values, strict=True)) if is_whole else None)
        return Scores(total, by_source)


def parse_rewards(reward: Sequence[Any]) -> list[RewardSource]:
    """The setting `reward` as sources.

    Raises:
        RewardError: one line for each mistake in its keys and values.
    """
    problems, sources = [], []
    if not reward:
        problems.append("reward is missing: give a list of sources, such as reward: [{function: my_rewards.py:polite}]")
    for index, item in enumerate(reward):
        place = f"reward[{index}]"
        mistakes = _mistakes(item, place)
        problems += mistakes
        if not mistakes:
            given = {**item, "on_error": OnError(item.get("on_error", OnError.stop))}
            sources.append(RewardSource(place=place, **given))
    if problems:
        raise RewardError(*problems)
    return sources


def check_rewards(reward: Sequence[Any]) -> list[str]:
    """What is wrong with the sources, one line each; user code is imported, no model is loaded."""
    try:
        sources = parse_rewards(reward)
    except AlignkitError as error:
        return list(error.problems)
    problems = []
    for source in sources:
        if source.kind == "function":
            problems += check_function(source.name, source.place)
        elif source.kind == "classifier":
            problems += check_classifier(source.name, source.label, source.place)
        else:
            problems += check_reward_run(source.name, source.place)
    return problems


def load_rewards(reward: Sequence[Any], columns: Sequence[str], *, device: torch.device) -> Rewards:
    """Load every source.

    Args:
        reward: the setting, which `check_rewards` has passed.
        columns: of the prompts' rows, which functions may ask for.
        device: where classifiers and reward models compute.

    Raises:
        RewardError: a function asks for a column that no row has, or a model cannot be loaded.
    """
    loaded: list[tuple[RewardSource, Scorer]] = []
    problems: list[str] = []
    for source in parse_rewards(reward):
        if source.kind == "function":
            problems += check_columns(source.name, columns, source.place)
            scorer: Scorer = PythonFunction(source.name, source.place, timeout=source.timeout, on_error=source.on_error)
        elif source.kind == "classifier":
            assert source.label is not None
            scorer = Classifier(source.name, source.label, as_logit=source.output == "logit", device=device)
        else:
            scorer = RewardRun(source.name, standardise=source.standardise, batch_size=source.batch_size, device=device)
        loaded.append((source, _InBatches(scorer, source.batch_size)))
    if problems:
        raise RewardError(*problems)
    return Rewards(loaded)


@dataclass(frozen=True)
class _InBatches:
    inner: Scorer
    size: int

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        cuts = [samples[start : start + self.size] for start in range(0, len(samples), self.size)]
        return [score for cut in cuts for score in self.inner.score(cut)]


def _checked(source: RewardSource, scores: list[float | None], samples: Sequence[Sample]) -> list[float | None]:
    """Only finite numbers, or None where `on_error` is skip."""
    for place, (score, sample) in enumerate(zip(scores, samples, strict=True)):
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
        if is_number:
            scores[place] = float(score)  # type: ignore[arg-type]  # a number, as just seen
        elif source.on_error is OnError.skip:
            scores[place] = None
        else:
            raise RewardError(
                f"{source.place}: {source.name} gave {score!r} for {sample.prompt.source}, prompt "
                f"{sample.prompt.text[:60]!r}, completion {sample.completion[:60]!r}: a score must be a finite number; "
                "on_error: skip leaves such completions out"
            )
    return scores


def _mistakes(item: Any, place: str) -> list[str]:
    if not isinstance(item, Mapping):
        return [f"{place} is {item!r}: it must be a source, such as {{function: my_rewards.py:polite}}"]
    known = [entry.name for entry in fields(RewardSource) if entry.name != "place"]
    problems = [f"{place}: unknown key '{key}'{did_you_mean(str(key), known)}" for key in item if key not in known]
    kinds = [kind for kind in _KINDS if item.get(kind) is not None]
    if len(kinds) != 1:
        problems.append(f"{place} names {' and '.join(kinds) or 'no source'}: give one of {', '.join(_KINDS)}")
    for key, kind in _ONLY_FOR.items():
        if item.get(key) is not None and kinds and kinds[0] != kind:
            problems.append(f"{place}.{key} has no effect on a {kinds[0]}: only a {kind} has it")
    problems += [
        f"{place}.{key} is {item[key]!r}: it must be a name"
        for key in (*_KINDS, "label")
        if item.get(key) is not None and (not isinstance(item[key], str) or not item[key].strip())
    ]
    problems += [
        f"{place}.{key} is {item[key]!r}: it must be {words}"
        for key, words in (("weight", "a number other than 0"), ("timeout", "seconds above 0"))
        if key in item and not _is_number(item[key], above_zero=key == "timeout")
    ]
    if not isinstance(item.get("standardise", False), bool):
        problems.append(f"{place}.standardise is {item['standardise']!r}: it must be true or false")
    size = item.get("batch_size", 1)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        problems.append(f"{place}.batch_size is {size!r}: it must be a whole number above 0")
    for key, choices in (("on_error", [str(member) for member in OnError]), ("output", list(_OUTPUTS))):
        if key in item and item[key] not in choices:
            problems.append(f"{place}.{key} is {item[key]!r}: choose {', '.join(choices)}")
    if kinds == ["classifier"] and item.get("label") is None:
        problems.append(f"{place}.label is missing: which label's score is the reward?")
    return problems


def _is_number(value: Any, *, above_zero: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return False
    return value > 0 if above_zero else value != 0


def _distinct(names: Sequence[str]) -> list[str]:
    return [f"{name}#{i}" if name in names[:i] else name for i, name in enumerate(names)]
