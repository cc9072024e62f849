"""From words on the command line and `config=` files to a typed job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from alignkit import mistakes
from alignkit.errors import ConfigError
from alignkit.home import expand_home
from alignkit.jobs import JOBS, StageJob, settings
from alignkit.launch.typed import Also, nothing, typed
from alignkit.launch.words import hydra_words, is_sweep, readable, register_resolvers
from alignkit.recipes import find_config


@dataclass(frozen=True)
class StepLayers:
    """What a step of a pipeline brings beside its words.

    Attributes:
        contents: settings laid over those of the `config=` files, by what messages and the record call them.
        folders: what `${run:STEP}` gives: the run directory of each earlier step.
        command: the command line of the pipeline, for the record.
    """

    contents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()


ALONE = StepLayers()
_NAMED = (("model", "name"), ("data", "path"))  # settings that commands have arguments and options for


def compose_job(
    stage: str, words: list[str], *, config_dir: Path | None = None, also: Also = nothing, **given: Any
) -> Any:
    """The typed job, without a run directory (for `inspect`, `generate` and notebooks).

    Args:
        stage: a key of `JOBS`.
        words: as in `launch`.
        config_dir: as in `launch`.
        also: finds what else is wrong with the job, to be told with the other mistakes.
        **given: what the command names beside the words, such as `model={"name": run}`: laid over the files.
    """
    also = _and_named_once(given, also)
    overrides, overlays = prepare(stage, words, config_dir, also=also, given=given)
    return typed(stage, composed(stage, overrides, config_dir), overlays=overlays, also=also)


def command_job(
    stage: str, words: list[str], *, config_dir: Path | None = None, also: Also = nothing, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """`compose_job` for a command that runs at once, and the settings as they were given, for its record.

    Files and folders that are named must be there. In the record interpolations are unresolved: it may be written out.
    """
    also = _and_named_once(given, also)
    overrides, overlays = prepare(stage, words, config_dir, named=True, also=also, given=given)
    cfg = composed(stage, overrides, config_dir)
    return typed(stage, cfg, named=True, overlays=overlays, also=also), as_given(cfg)


def step_job(
    stage: str, words: list[str], layers: StepLayers, *, config_dir: Path | None = None, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """`command_job` for the step of a pipeline: runs that it names need not be there yet."""
    also = _and_named_once(given)
    overrides, overlays = prepare(stage, words, config_dir, also=also, given=given, layers=layers)
    cfg = composed(stage, overrides, config_dir)
    return typed(stage, cfg, overlays=overlays, also=also), as_given(cfg)


def _and_named_once(given: Mapping[str, Mapping[str, Any]], also: Also = nothing) -> Also:
    """Refuse a word that sets what the command names, too: one of the two would have no effect."""

    def problems(job: Any) -> list[str]:
        lines = []
        for section, key in _NAMED:
            wanted = given.get(section, {}).get(key)
            found = getattr(getattr(job, section, None), key, None)
            if isinstance(wanted, str) and wanted and "${" not in wanted and found != expand_home(wanted):
                setting = f"{section}.{key}"
                lines.append(f"{setting}={found}: the command names {wanted}, and has one of them; leave {setting} out")
        return [*lines, *also(job)]

    return problems


def job_of_record(stage: str, given: Mapping[str, Any], folders: Mapping[str, str] | None = None) -> Any:
    """The job that the record of a run holds: interpolations are resolved now, later settings have their defaults.

    Args:
        stage: a key of `JOBS`.
        given: its settings.
        folders: what `${run:STEP}` gives, of the step of a pipeline.

    Raises:
        ConfigError: as `typed`.
    """
    register_resolvers(folders or {})
    with hydra_words():
        cfg = OmegaConf.create(dict(given))
    return typed(stage, cfg, named=True)


def prepare(
    stage: str,
    words: list[str],
    config_dir: Path | None,
    *,
    sweep: bool = False,
    further: bool = True,
    named: bool = False,
    also: Also = nothing,
    given: dict[str, Any] | None = None,
    layers: StepLayers = ALONE,
) -> tuple[list[str], dict[str, Any]]:
    """Check everything that can be checked, and register schema and overlays.

    Where words are wrong the others are composed without them (`further`), so that all mistakes are told at once.

    Returns:
        Hydra's overrides, and the content of each `config=` file and of each layer above these.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir: '{config_dir}' is no folder")
    files = [word for word in words if word.startswith("config=")]
    register_resolvers(layers.folders)
    overlays, problems = read_overlays(words, config_dir)
    overlays |= layers.contents
    problems += mistakes.in_files(stage, overlays, config_dir)
    overrides = [word for word in words if not word.startswith("config=")]
    found = {
        word: mistakes.in_override(stage, word, config_dir, is_sweep, sweep=sweep, before=before)
        for word, before in zip(overrides, ["", *overrides], strict=False)
    }
    problems += [line for lines in found.values() for line in lines]
    problems = problems or mistakes.hidden_templates(overlays, overrides)
    if not problems:
        return [*_registered(stage, overlays, given), *map(readable, overrides)], overlays
    if not further or (config_dir and any(line.startswith(str(config_dir)) for line in problems)):
        raise ConfigError(*problems)
    sound = {path: mistakes.without_mistakes(stage, content, config_dir) for path, content in overlays.items()}
    unread = any("a configuration file is given as" in line for line in problems)
    cut = sound != overlays or len(overlays) < len(files) or unread
    about = tuple(re.split(r"[=.\[\s]", word.lstrip("+~"))[0] or word for word, lines in found.items() if lines)
    rest = [*_registered(stage, sound, given), *(readable(word) for word, lines in found.items() if not lines)]
    try:
        typed(stage, composed(stage, rest, config_dir), named=named, overlays=overlays, also=also)
    except ConfigError as error:
        # What was left out for its mistake is not missing.
        more = [line for line in error.problems if not (" is missing: " in line and (cut or line.startswith(about)))]
        raise ConfigError(*dict.fromkeys([*problems, *more])) from None
    raise ConfigError(*problems)


def composed(stage: str, overrides: list[str], config_dir: Path | None) -> DictConfig:
    own = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir is not None else []
    with hydra_words(), initialize_config_module("alignkit.conf", version_base="1.3"):
        return compose(stage, [*overrides, *own])


def as_given(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)  # ${oc.env:TOKEN} must not be written out


def _registered(stage: str, overlays: dict[str, Any], given: dict[str, Any] | None) -> list[str]:
    """Register a stage and what is laid over it with Hydra; the overrides that choose it."""
    store = ConfigStore.instance()
    store.store(name=f"{stage}_schema", node=_schema(stage))
    if not issubclass(JOBS[stage], StageJob):  # a stage has a file with its own choices among upstream's arguments
        store.store(name=stage, node={"defaults": [f"{stage}_schema", *_groups(stage), "_self_"]})
    chosen = []
    for number, content in enumerate([*overlays.values(), *([given] if given else [])]):
        store.store(group=f"overlay{number}", name="file", node=_as_overlay(content), package="_global_")
        chosen.append(f"+overlay{number}=file")
    return chosen


def _schema(stage: str) -> DictConfig:
    schema: DictConfig = OmegaConf.structured(JOBS[stage])
    for key, item, _ in settings(JOBS[stage]()):
        if "dict" in str(item.type):
            OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    return schema


def _groups(stage: str) -> list[dict[str, None]]:
    """The groups a job has, with no option chosen: what is not chosen is as the job's class says."""
    return [{group: None} for group in mistakes.groups_of(stage)]


def read_overlays(words: list[str], config_dir: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The contents of the `config=` files among the words, and what is wrong with these."""
    files = [expand_home(word.removeprefix("config=")) for word in words if word.startswith("config=")]
    overlays: dict[str, Any] = {}
    problems: list[str] = []
    for file in files:
        try:
            path = find_config(file, config_dir)
            content = mistakes.read_yaml(path)
        except ConfigError as error:
            problems += error.problems
            continue
        if not content:
            problems.append(f"config={file}: the file is empty")
        elif not isinstance(content, dict):
            problems.append(f"config={file}: it holds a list where settings belong; write key: value lines")
        else:
            overlays[str(path)] = content
    return overlays, problems


def _as_overlay(content: dict[str, Any]) -> dict[str, Any]:
    """`model: tiny_gpt2` in a file chooses a group's option, as `model=tiny_gpt2` on the command line does."""
    chosen = {key: value for key, value in content.items() if key in mistakes.GROUPS and isinstance(value, str)}
    rest = {key: value for key, value in content.items() if key not in chosen}
    defaults = [*rest.pop("defaults", []), *({f"override /{group}": name} for group, name in chosen.items())]
    return {"defaults": [*defaults, "_self_"], **rest}
