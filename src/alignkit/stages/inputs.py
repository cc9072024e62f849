"""What a run is made of beside its settings: files of data, templates, functions and models, each with its checksum."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from alignkit.choices import Init
from alignkit.config import DataConfig, ModelConfig, TemplateConfig
from alignkit.data.encode.templates import SHIPPED, shipped_template
from alignkit.data.files.sources import files_of, hub_commit
from alignkit.data.sets.section import paths_by_set
from alignkit.digests import digests
from alignkit.errors import RunError
from alignkit.jobs import StageJob
from alignkit.models.source import TOKENIZER_FILES, ModelSource, config_folder, tokenizer_folder
from alignkit.rewards.source import parse_rewards
from alignkit.runs.directory import Run
from alignkit.runs.result import result_files
from alignkit.user_functions import function_name, load_function, local_modules

logger = logging.getLogger(__name__)

_NOT_OF_MODELS = (".jsonl",)  # samples of a run
_KINDS = {
    **{"data": "data", "hub_data": "hub data", "template": "template", "tokenizer": "tokenizer"},
    **{"models": "model", "functions": "function", "modules": "module imported for"},
}


def model_sections(job: StageJob) -> dict[str, ModelConfig]:
    """Return every model that a job takes, by the setting that names it."""
    sections = {"model.name": job.model} if job.model.init is Init.pretrained else {}
    named = {
        "reference.name": job.reference.name if hasattr(job, "reference") else None,
        "value.start": job.value.start if hasattr(job, "value") else None,
    }
    for source in parse_rewards(job.reward) if hasattr(job, "reward") else ():
        named[source.setting_of(source.kind)] = source.model or source.classifier
    return sections | {setting: ModelConfig(name) for setting, name in named.items() if name is not None}


def record_inputs(run: Run, job: StageJob, trainer_class: type) -> None:
    """Fingerprint what a run is made of, and compare it with what the run began with if it goes on.

    Raises:
        RunError: one line for each file that is another one now.
    """
    run.inputs = fingerprints(job)
    if not trainer_class.__module__.startswith("alignkit."):
        run.inputs["functions"] |= _source_of("trainer_class", trainer_class)
    if not run.resuming:
        return
    before = run.earlier.get("inputs")
    if not isinstance(before, dict):
        logger.warning(
            "%s was begun by an earlier alignkit, which took no fingerprints: whether its data, template, functions "
            "and models are as they were is not checked",
            run.folder,
        )
        return
    if unknown := [word for kind, word in _KINDS.items() if run.inputs[kind] and kind not in before]:
        logger.warning("%s took no fingerprint of the %s: not checked", run.folder, ", ".join(unknown))
    problems = list(input_differences(before, run.inputs, run.folder))
    if run.forced:
        run.force(problems)
    elif problems:
        raise RunError(
            *(f"resume=true: {problem}" for problem in problems),
            "put them back as they were, or start a run of another name; resume=force goes on all the same",
        )


_CHANGES = {
    "gone": "was there when {} began, and is not now",
    "new": "was not there when {} began",
    "other": "has changed since {} began",
}


def input_differences(before: Mapping[str, Any], now: Mapping[str, dict[str, str]], folder: Path) -> Iterator[str]:
    """List the inputs that are other ones now than those a run in a folder began with, a line each."""
    for what, change in changed_inputs(before, now):
        yield f"the {what} {_CHANGES[change].format(folder)}"


def changed_inputs(before: Mapping[str, Any], now: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield what differs between two fingerprints: its kind and name, and whether it is `gone`, `new` or `other`."""
    for kind, word in _KINDS.items():
        if kind not in before:  # an earlier version
            continue
        was = before[kind] if isinstance(before.get(kind), dict) else {}
        for name in sorted(was.keys() | now[kind].keys()):
            if name not in now[kind]:
                yield f"{word} {name}", "gone"
            elif name not in was:
                yield f"{word} {name}", "new"
            elif was[name] != now[kind][name]:
                yield f"{word} {name}", "other"


def fingerprints(job: StageJob) -> dict[str, dict[str, str]]:
    """Compute checksums of all that a job reads beside its settings, by kind and by the name of each file."""
    rewards = parse_rewards(job.reward) if hasattr(job, "reward") else ()
    functions = [(reward.setting, reward.function) for reward in rewards if reward.function]
    found = fingerprints_of(job.data, job.template, model_sections(job), functions)
    if folder := tokenizer_folder(job.model):
        of_tokenizer = [file for file in result_files(folder) if file.name.startswith(TOKENIZER_FILES)]
        found["tokenizer"] |= _named("model.name ", of_tokenizer)
        found["models"] |= _named("model.name ", [folder / "config.json"] if config_folder(job.model) else [])
    return found


def fingerprints_of(
    data: DataConfig | None,
    template: TemplateConfig,
    models: Mapping[str, ModelConfig],
    functions: Sequence[tuple[str, str | Callable[..., Any]]] = (),
) -> dict[str, dict[str, str]]:
    """Compute checksums of what is read, by kind and by the name of each file.

    Args:
        data: the rows; functions that it names as formats are read, too.
        template: where it is a file, or one that ships.
        models: by the setting that names each.
        functions: the user's own rewards, each with the setting that names it.
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in _KINDS}
    named: list[tuple[str, str]] = []
    for setting, path in paths_by_set(data).items() if data is not None else ():
        items = [
            item if isinstance(item, dict) else {"path": item} for item in (path if isinstance(path, list) else [path])
        ]
        local = {item["path"]: files_of(item["path"]) for item in items}
        found["data"] |= _named(f"{setting} ", [Path(file) for files in local.values() for file in files])
        for name in (name for name, files in local.items() if not files):
            of_set = "data.path" if setting == "train" else "data.eval_path"
            found["hub_data"][f"{setting} {name}"] = hub_commit(name, setting=of_set)
        formats = [item.get("format") or data.format for item in items] if data is not None else []
        named += [("data.format", name) for name in dict.fromkeys(formats) if ":" in name]
    if template.file:  # a file that is gone is refused where it is loaded
        found["template"] = _named("", [file for file in [Path(template.file)] if file.is_file()])
    elif template.name in SHIPPED:
        text = shipped_template(template.name)
        found["template"] = {template.name: hashlib.sha256(text.encode()).hexdigest()}
    for setting, section in models.items():
        for prefix, source in _with_base(setting, ModelSource.of(section)):
            if source.folder is None:
                found["models"] |= _commit(prefix, source)
                continue
            files = [file for file in result_files(source.folder) if file.suffix not in _NOT_OF_MODELS]
            of_tokenizer = [file for file in files if file.name.startswith(TOKENIZER_FILES)]
            found["tokenizer"] |= _named(f"{prefix} ", of_tokenizer)
            found["models"] |= _named(f"{prefix} ", [file for file in files if file not in of_tokenizer])
    for setting, function in functions:
        if callable(function):
            found["functions"] |= _source_of(setting, function)
        else:
            named.append((setting, function))
    for setting, spec in dict.fromkeys(named):
        place = Path(spec.rpartition(":")[0])  # a file, or else a module
        file = place if place.is_file() else inspect.getsourcefile(inspect.unwrap(load_function(spec, setting)))
        if file:
            found["functions"] |= _named(f"{setting} ", [Path(file)])
            found["modules"] |= _named(f"{setting} ", local_modules(Path(file)))
    return found


def _source_of(setting: str, written: type | Callable[..., Any]) -> dict[str, str]:
    """The checksum of a function or class of Python's, of its source alone: a notebook has no file of it."""
    try:
        text = inspect.getsource(inspect.unwrap(written))
    except (OSError, TypeError):  # typed at a prompt, or an object that can be called
        return {}
    return {f"{setting} {function_name(written)}": hashlib.sha256(text.encode()).hexdigest()}


def _with_base(setting: str, source: ModelSource) -> Iterator[tuple[str, ModelSource]]:
    yield setting, source
    if source.is_adapter and source.base.folder != (source.folder or Path()) / "base":
        yield f"{setting}, base", source.base


def _named(prefix: str, files: Iterable[Path]) -> dict[str, str]:
    """Checksums by name; of the same names in other folders the later ones get a number, so that a folder may move."""
    named: dict[str, str] = {}
    for file, digest in digests(list(files)).items():
        name, number = f"{prefix}{file.name}", 1
        while name in named:
            number += 1
            name = f"{prefix}{file.name}#{number}"
        named[name] = digest
    return named


def _commit(setting: str, source: ModelSource) -> dict[str, str]:
    """The commit of a model of the hub that is in the cache."""
    cached = try_to_load_from_cache(source.config.name, "config.json", revision=source.config.revision)
    return {f"{setting} {source.config.name}": Path(cached).parent.name} if isinstance(cached, str) else {}
