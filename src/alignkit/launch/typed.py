"""A composed configuration as a typed job, or all that is wrong with it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignkit import mistakes
from alignkit.errors import ConfigError
from alignkit.jobs import JOBS, out_of_bounds, path_problems, settings, with_home
from alignkit.launch.words import hydra_words, why_unresolved
from alignkit.named_files import named_problems

Also = Callable[[Any], list[str]]  # what else is wrong with a job, one line each


def nothing(job: Any) -> list[str]:
    return []


def typed(
    stage: str,
    cfg: DictConfig,
    *,
    named: bool = False,
    overlays: Mapping[str, Any] | None = None,
    also: Also = nothing,
) -> Any:
    """The job as plain dataclasses, `~` in its paths expanded.

    Args:
        stage: a key of `JOBS`.
        cfg: composed.
        named: look also whether the files and folders that it names are there.
        overlays: the files it was composed of, to name the one that a setting is in.
        also: finds what else is wrong.

    Raises:
        ConfigError: a setting is missing, of the wrong type or out of its bounds; all of them at once.
    """
    with hydra_words():
        if unresolved := dict(_unresolved(cfg)):
            raise ConfigError(*(mistakes.file_of(key, overlays or {}) + line for key, line in unresolved.items()))
        node = OmegaConf.merge(OmegaConf.structured(JOBS[stage]), OmegaConf.to_container(cfg, resolve=True))
        assert isinstance(node, DictConfig)
        missing = [key for key, *_ in settings(JOBS[stage]()) if _is_missing(node, key)]
        for key in missing:  # the others are to be looked at, too
            OmegaConf.update(node, key, "")
        job = with_home(OmegaConf.to_object(node))
    problems = [f"{key} is missing: give it as {key}=…{_group_hint(key)}" for key in missing]
    problems += [*_name_problems(job), *path_problems(job), *out_of_bounds(job)]
    if named:
        problems += named_problems(job)
    if problems := [*problems, *also(job)]:
        raise ConfigError(*dict.fromkeys(problems))
    return job


def _unresolved(node: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Each setting whose interpolation leads nowhere, with a line on how it is given."""
    keys = range(len(node)) if isinstance(node, ListConfig) else node.keys()
    for key in keys:
        dotted = f"{above}[{key}]" if isinstance(node, ListConfig) else f"{above}.{key}".lstrip(".")
        if OmegaConf.is_interpolation(node, key):
            written = node._get_node(key)._value()
            try:
                node[key]
            except (OmegaConfBaseException, ValueError, KeyError) as error:
                yield dotted, f"{dotted}={written}: {why_unresolved(error)}"
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], (DictConfig, ListConfig)):
            yield from _unresolved(node[key], dotted)


def _name_problems(job: Any) -> list[str]:
    name = getattr(job, "name", None)
    if name is None or (Path(name).parts and not Path(name).is_absolute() and ".." not in Path(name).parts):
        return []
    return [
        f"name={name}: a run's name is its folder below runs/ and cannot lead elsewhere; for another folder give "
        "hydra.run.dir=FOLDER"
    ]


def _is_missing(node: DictConfig, key: str) -> bool:
    section, _, leaf = key.rpartition(".")
    return OmegaConf.is_missing(OmegaConf.select(node, section) if section else node, leaf)


def _group_hint(key: str) -> str:
    group = key.split(".")[0]
    if group not in mistakes.GROUPS:
        return ""
    return f", or choose {group}= one of {', '.join(mistakes.group_options(group))}"
