"""Everything that can be known to be wrong with a pipeline before its first step starts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from alignkit.choices import Resume
from alignkit.commands import compare, evaluate, merge
from alignkit.errors import AlignkitError, ConfigError
from alignkit.evaluate.arguments import check_section
from alignkit.evaluate.prompts import check_prompts
from alignkit.evaluate.rewards import check_reward
from alignkit.pipeline.composed import Composed, compose_step
from alignkit.pipeline.file import Pipeline, references
from alignkit.pipeline.known import is_adapter, missing_model, standing_in
from alignkit.rewards.source import parse_rewards
from alignkit.runs.directory import check_folder
from alignkit.runs.log import run_log
from alignkit.sampling.settings import check_sampling

_FIRST_ROWS = 256  # of each set: their columns and their template are those of the others


def compose_all(pipeline: Pipeline) -> dict[str, Composed]:
    """Compose every step.

    Raises:
        ConfigError: one line for each mistake in the settings of any step.
    """
    composed: dict[str, Composed] = {}
    problems: list[str] = []
    for step in pipeline.steps:
        try:
            composed[step.name] = compose_step(pipeline, step, composed)
        except AlignkitError as error:
            problems += [line if line.startswith(step.place) else f"{step.place}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(*problems)
    return composed


def check_steps(steps: Mapping[str, Composed], to_run: Collection[str]) -> None:
    """Check the steps that are going to run.

    Args:
        steps: all of the pipeline.
        to_run: those that run, or may: what refers to them is checked as far as can be known.

    Raises:
        ConfigError: one line for each problem of any step.
    """
    problems: list[str] = []
    with run_log():
        logging.getLogger("alignkit").setLevel(logging.ERROR)  # each step says it again when it runs
        for name in to_run:
            composed = steps[name]
            problems += [f"{composed.step.place}: {line}" for line in _problems(composed, steps, to_run)]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def _problems(composed: Composed, steps: Mapping[str, Composed], missing: Collection[str]) -> list[str]:
    if unfit := list(_unfit(composed, steps)):
        return unfit
    check = _check_stage if composed.step.is_stage else check_command
    try:
        check_folder(composed.folder, resume=Resume.false, overwrite=True)
        check(composed, steps, missing)
    except AlignkitError as error:
        return list(error.problems)
    return []


def _unfit(composed: Composed, steps: Mapping[str, Composed]) -> Iterator[str]:
    """What a step takes from another one that leaves no such thing."""
    record, what = composed.record, composed.step.kind
    models = {"model.name": record["model"]["name"]} if "models" not in record else {}
    models |= {f"models[{i}]": name for i, name in enumerate(record.get("models", []))}
    if record.get("reference"):
        of = record["reference"]
        models |= {"reference.name": of["name"]} if isinstance(of, Mapping) else {"reference": of}
    for setting, value in models.items():
        for name in references(value):
            kind = steps[name].step.kind
            if kind in ("reward", "evaluate", "compare"):
                left = "a reward model" if kind == "reward" else "a report"
                yield f"{setting}: the step {name} leaves {left} where a language model belongs"
    given = record.get("reward") or []
    rewards = [item.get("model") for item in given if isinstance(item, Mapping)] if isinstance(given, list) else [given]
    for name in references(rewards):
        if steps[name].step.kind != "reward":
            yield f"reward: the step {name} is of {steps[name].step.kind} where a reward model belongs"
    parents = [steps[name] for name in references(record["model"]["name"])]
    if getattr(composed.job, "lora", None) and any(is_adapter(parent, steps) for parent in parents):
        yield (
            f"lora: the step {parents[0].step.name} leaves an adapter: lora: none trains it further; for another one, "
            "merge it in a step of command: merge"
        )
    if what == "merge" and parents and not any(is_adapter(parent, steps) for parent in parents):
        yield f"model.name: the step {parents[0].step.name} leaves no adapter: there is nothing to merge"


def _check_stage(composed: Composed, steps: Mapping[str, Composed], missing: Collection[str]) -> None:
    kind, job = composed.step.kind, standing_in(composed, steps, missing)
    if kind == "ppo":
        parse_rewards(composed.job.reward)
    import_module(f"alignkit.stages.{kind}.check").check_job(job)
    prepare = import_module(f"alignkit.stages.{kind}.data").prepare
    if job.data.limit is not None and job.data.limit <= _FIRST_ROWS:
        prepare(job)
        return
    try:
        prepare(replace(job, data=replace(job.data, limit=_FIRST_ROWS)))
    except AlignkitError:  # it may be that the first rows alone are too few, or worse than the others
        prepare(job)


def check_command(composed: Composed, steps: Mapping[str, Composed], missing: Collection[str]) -> None:
    """Check a step of a command, as far as the runs that it takes are there.

    Raises:
        ConfigError: one line for each problem.
    """
    job, given, kind = composed.job, composed.arguments, composed.step.kind
    if kind == "merge":
        if not missing_model(composed, missing):
            merge.check(job, composed.folder / "not made yet")
        return
    unknown = set(references(composed.record)) & set(missing)
    if not unknown:
        _check_whole(composed)
        return
    if kind == "evaluate":
        problems = evaluate.check_rows(job, as_prompts=evaluate.reads_prompts(job, composed.as_prompts))
    else:
        prompts, path = given.get("prompt", []), path_of(given, "prompts")
        problems = check_sampling(job.sampling)
        problems += check_prompts(prompts, path, format=job.format, columns=job.columns)
    if (reward := given.get("reward")) and not _refers(composed, "reward", missing):
        problems += check_reward(reward)
    if (reference := given.get("reference")) and not _refers(composed, "reference", missing):
        problems += check_section(replace(job.model, name=reference))
    if kind == "compare" and len(given.get("models", [])) < 2:
        problems.append("models: there is nothing to compare: name two models or more")
    if problems:
        raise ConfigError(*problems)


def _refers(composed: Composed, argument: str, missing: Collection[str]) -> bool:
    return bool(set(references(composed.record.get(argument))) & set(missing))


def _check_whole(composed: Composed) -> None:
    """Check a command whose models are all there."""
    job, given = composed.job, composed.arguments
    models = given.get("models", [])
    if composed.step.kind == "evaluate":
        asked: dict[str, Any] = {key: given.get(key) for key in ("reward", "reference", "pairs")}
        evaluate.check(job, models, **asked, out=None, as_prompts=evaluate.reads_prompts(job, composed.as_prompts))
    else:
        prompts, path = given.get("prompt", []), path_of(given, "prompts")
        compare.check(job, models, prompts, path, given.get("reward"), None)


def path_of(arguments: Mapping[str, Any], key: str) -> Path | None:
    """Return the path among the arguments of a command; None where it is not given."""
    return Path(arguments[key]) if arguments.get(key) else None
