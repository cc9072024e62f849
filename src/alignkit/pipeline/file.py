"""The file of a pipeline: a name, and named steps that refer to earlier ones as `${run:STEP}`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import ConfigError, did_you_mean
from alignkit.jobs import JOBS, StageJob
from alignkit.mistakes import read_yaml
from alignkit.recipes import find_config

ROOT = Path("runs")
STAGES = tuple(name for name, job in JOBS.items() if issubclass(job, StageJob))
# What a step of a command can be told beside the settings of its job: what the command line has as arguments and flags.
COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluate": ("models", "reward", "reference", "pairs"),
    "compare": ("models", "prompt", "prompts", "reward"),
    "merge": (),
}
_LISTS = ("models", "prompt")
_OF_THE_CHAIN = ("name", "resume", "overwrite", "hydra")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\$\{\s*run\s*:\s*([^{}]*?)\s*\}")


@dataclass(frozen=True)
class Step:
    """One step as it is written.

    Attributes:
        name: of the step; its run is `runs/PIPELINE/NAME`.
        kind: what it runs: a stage, or a command.
        place: `FILE:LINE, step NAME`, for messages and for the record.
        settings: laid over the recipes that it names.
        words: `config=FILE` of its recipes, then its `key=value` words of the command line.
        arguments: of a command, interpolations unresolved.
    """

    name: str
    kind: str
    place: str
    settings: Mapping[str, Any]
    words: tuple[str, ...]
    arguments: Mapping[str, Any]

    @property
    def is_stage(self) -> bool:
        """Whether it trains."""
        return self.kind in STAGES


@dataclass(frozen=True)
class Pipeline:
    """The steps in their order.

    Attributes:
        name: of the pipeline.
        file: that it was read from.
        words: all words of the command line.
        steps: in the order in which they run.
        config_dir: the user's own group options.
    """

    name: str
    file: Path
    words: tuple[str, ...]
    steps: tuple[Step, ...]
    config_dir: Path | None = None

    @property
    def folder(self) -> Path:
        """Of the pipeline, with the run of each step below it."""
        return ROOT / self.name

    def folder_of(self, step: str) -> Path:
        """Return the run directory of a step."""
        return self.folder / step

    def step(self, name: str, option: str) -> Step:
        """Find a step that an option names.

        Raises:
            ConfigError: there is none.
        """
        names = [step.name for step in self.steps]
        if name not in names:
            raise ConfigError(
                f"{option} {name}: {self.file} has no such step, only {', '.join(names)}{did_you_mean(name, names)}"
            )
        return self.steps[names.index(name)]


def references(value: Any) -> list[str]:
    """List the steps that texts refer to as `${run:STEP}`, in whatever they are nested; each once."""
    return list(dict.fromkeys(name for text in _texts(value) for name in _REFERENCE.findall(text)))


def with_folders(value: Any, folders: Mapping[str, str]) -> Any:
    """Put the folder of a step in place of each `${run:STEP}`."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: folders[found[1]], value)
    return [with_folders(item, folders) for item in value] if isinstance(value, list) else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def read_pipeline(words: Sequence[str], config_dir: Path | None = None, *, in_chain: bool = False) -> Pipeline:
    """Read the file that `config=` names, and sort the other words by the steps that they are for.

    Args:
        words: `config=FILE`, `name=NAME` and `STEP.key=value`.
        config_dir: the user's own folder of options and recipes.
        in_chain: one step is run as the chain decided: its words may say `resume` and `overwrite`.

    Raises:
        ConfigError: one line for each mistake in what the steps are and refer to; their settings are not looked at.
    """
    files = [word.removeprefix("config=") for word in words if word.startswith("config=")]
    if len(files) != 1:
        raise ConfigError("alignkit run takes one pipeline: give it as config=FILE, such as config=pipeline/rlhf")
    path = find_config(files[0], config_dir)
    content = read_yaml(path)
    if not isinstance(content, dict) or not isinstance(content.get("steps"), dict) or not content["steps"]:
        raise ConfigError(f"{path}: it is no pipeline: a pipeline has steps:, with a name and settings for each")
    names = [word.removeprefix("name=") for word in words if word.startswith("name=")]
    name, lines = str([content.get("name", path.stem), *names][-1]), _Lines.of(path)
    problems = [
        f"{path}:{lines.of_key(str(key))}: unknown key '{key}'; a pipeline has name and steps"
        for key in content
        if key not in ("name", "steps")
    ]
    problems += _name_problems(name, path)
    rest = [word for word in words if not word.startswith(("config=", "name="))]
    of_steps, unplaced = _sorted(rest, content["steps"], in_chain=in_chain)
    problems += unplaced
    steps = []
    for key, section in content["steps"].items():
        place = f"{path}:{lines.of_key('steps', str(key))}, step {key}"
        found = _step_problems(str(key), section, place)
        problems += found
        if not found:
            steps.append(_step(str(key), section, place, of_steps.get(str(key), [])))
    problems += _reference_problems(content["steps"], of_steps, path, lines)
    if problems:
        raise ConfigError(*problems)
    return Pipeline(name, path, tuple(words), tuple(steps), config_dir)


def _name_problems(name: str, path: Path) -> list[str]:
    if not _NAME.fullmatch(name):
        return [f"{path}: name={name}: a pipeline's name is its folder below runs/: letters, digits, - and _"]
    if name in JOBS:
        return [f"{path}: name={name}: runs/{name} holds the runs of alignkit {name}: choose another name"]
    return []


def _sorted(
    words: Sequence[str], steps: Mapping[Any, Any], *, in_chain: bool
) -> tuple[dict[str, list[str]], list[str]]:
    """Words of the command line by step, without its name; and those that are for none."""
    found: dict[str, list[str]] = {}
    problems = []
    known = list(map(str, steps))
    for word in words:
        key, equals, value = word.partition("=")
        bare = key.lstrip("+~")
        step, dot, rest = bare.partition(".")
        if not equals or not dot or step not in known:
            hint = did_you_mean(step, known)
            problems.append(f"'{word}' is for no step: a setting is given as STEP.key=value, with {_or(known)}{hint}")
        elif rest.split(".")[0] in _OF_THE_CHAIN and not in_chain:
            problems.append(f"'{word}': {_why_not(rest.split('.')[0])}")
        else:
            found.setdefault(step, []).append(f"{key[: len(key) - len(bare)]}{rest}={value}")
    return found, problems


def _why_not(key: str) -> str:
    if key in ("resume", "overwrite"):
        return f"{key} is not set in a pipeline, which goes on, skips or runs again by itself"
    return f"{key} is not set in a pipeline: the run of a step is runs/PIPELINE/STEP"


def _or(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _step_problems(name: str, section: Any, place: str) -> list[str]:
    if not _NAME.fullmatch(name):
        return [f"{place}: a step's name is its folder: letters, digits, - and _"]
    if not isinstance(section, dict):
        return [f"{place}: it has no settings: give it a stage or a command"]
    kinds = [(key, str(section[key])) for key in ("stage", "command") if key in section]
    if len(kinds) != 1:
        return [f"{place}: it needs one of stage: {_or(STAGES)}, and command: {_or(list(COMMANDS))}"]
    (key, kind) = kinds[0]
    known = STAGES if key == "stage" else tuple(COMMANDS)
    if kind not in known:
        return [f"{place}: there is no {key} '{kind}', only {', '.join(known)}{did_you_mean(kind, known)}"]
    problems = [f"{place}: {_why_not(key)}" for key in _OF_THE_CHAIN if key in section]
    problems += [
        f"{place}: {key} is {section[key]!r}: it must be a list of texts"
        for key in _LISTS
        if key in COMMANDS.get(kind, ()) and key in section and not _is_texts(section[key])
    ]
    recipes = section.get("config", [])
    if not (isinstance(recipes, str) or _is_texts(recipes)):
        problems.append(f"{place}: config is {recipes!r}: it must be a recipe or a file, or a list of these")
    return problems


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _step(name: str, section: Mapping[str, Any], place: str, words: Sequence[str]) -> Step:
    kind = str(section.get("stage") or section["command"])
    flags = COMMANDS.get(kind, ())
    arguments = {key: section[key] for key in flags if key in section}
    for word in words:
        key, _, value = word.partition("=")
        if key in flags:
            arguments[key] = yaml.safe_load(value)
    recipes = section.get("config", [])
    recipes = [recipes] if isinstance(recipes, str) else recipes
    settings = {key: section[key] for key in section if key not in ("stage", "command", "config", *flags)}
    of_job = [word for word in words if word.partition("=")[0] not in flags]
    return Step(name, kind, place, settings, (*(f"config={recipe}" for recipe in recipes), *of_job), arguments)


def _reference_problems(
    steps: Mapping[Any, Any], words: Mapping[str, list[str]], path: Path, lines: _Lines
) -> Iterator[str]:
    names = list(map(str, steps))
    refers = {str(name): references([section, words.get(str(name), [])]) for name, section in steps.items()}
    for place, step in enumerate(names):
        for other in refers[step]:
            where = f"{path}:{lines.of_reference(step, other)}, step {step}: ${{run:{other}}}"
            if other not in names:
                yield f"{where}: there is no step '{other}', only {', '.join(names)}{did_you_mean(other, names)}"
            elif circle := _way(other, step, refers):
                yield f"{where}: the steps go round in a circle: {' → '.join([step, *circle])}"
            elif names.index(other) > place:
                yield f"{where}: the step {other} comes later: put it before {step}"


def _way(start: str, end: str, refers: Mapping[str, list[str]], seen: tuple[str, ...] = ()) -> list[str]:
    """The steps from one to another along what they refer to; empty where no way leads there."""
    if start == end:
        return [start]
    for other in refers.get(start, ()):
        if other not in seen and (way := _way(other, end, refers, (*seen, start))):
            return [start, *way]
    return []


@dataclass(frozen=True)
class _Lines:
    """Where keys and texts stand in a file."""

    root: Any

    @classmethod
    def of(cls, path: Path) -> _Lines:
        return cls(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))

    def of_key(self, *keys: str) -> int:
        node, line = self.root, 1
        for key in keys:
            for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
                if name.value == key:
                    node, line = value, name.start_mark.line + 1
                    break
        return line

    def of_reference(self, step: str, other: str) -> int:
        """The line of a step that refers to another; the step's own line where the command line does."""
        for name, value in self.root.value:
            if name.value == "steps":
                for key, section in value.value:
                    if key.value == step and (line := _line_of(section, other)):
                        return line
        return self.of_key("steps", step)


def _line_of(node: Any, other: str) -> int:
    if isinstance(node, yaml.ScalarNode):
        return node.start_mark.line + 1 if other in _REFERENCE.findall(str(node.value)) else 0
    parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    return next((line for part in parts if (line := _line_of(part, other))), 0)
