"""Every mistake in the user's files and overrides, found before Hydra composes them.

Hydra stops at the first mistake and speaks of its own machinery; a person wants all of them, each with the way out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignkit import upstream
from alignkit.errors import ConfigError, did_you_mean
from alignkit.jobs import JOBS, settings
from alignkit.runs.manifest import flat
from alignkit.yaml_size import size_problem

GROUPS = ("model", "data", "template", "lora", "sampling")

# Sections of `hydra` that place and launch runs; the others (callbacks, logging factories) can run code from a file.
_HYDRA_SECTIONS = ("run", "sweep", "sweeper", "launcher", "mode", "job")
_OVERRIDE = re.compile(r"(?P<sign>\+\+?|~)?(?P<key>[^=\s]+)(?:=(?P<value>.*))?", re.DOTALL)


def group_options(group: str, config_dir: Path | None = None) -> list[str]:
    """Names that `group=` takes: those shipped and those in the user's own `--config-dir`."""
    shipped = [entry.name for entry in resources.files("alignkit.conf").joinpath(group).iterdir()]
    own = [path.name for path in (config_dir / group).glob("*.yaml")] if config_dir else []
    return sorted({Path(name).stem for name in [*shipped, *own] if name.endswith(".yaml")})


def read_yaml(path: Path) -> Any:
    """Read a file of settings, interpolations unresolved.

    Raises:
        ConfigError: it cannot be read, or is too large; in one line, with the file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if problem := size_problem(text):
            raise ConfigError(f"{path}: {problem}")
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{where}: it is not YAML: {getattr(error, 'problem', None) or str(error).splitlines()[0]}"
        ) from error


def in_files(stage: str, overlays: Mapping[str, Any], config_dir: Path | None) -> list[str]:
    """Mistakes in the contents of `config=` files, already parsed, and code hidden in those of `--config-dir`."""
    lines = []
    for path, content in overlays.items():
        found = [*_forbidden(content), *_in_mapping(content, stage, config_dir)]
        lines += [f"{path}: {line}" for line in found]
    for file in sorted(config_dir.rglob("*.yaml")) if config_dir else []:
        try:
            content = read_yaml(file)
        except ConfigError as error:
            lines += error.problems
        else:
            lines += [f"{file}: {line}" for line in _forbidden(content)]
    return lines


def in_overrides(stage: str, overrides: list[str], config_dir: Path | None, *, sweep: bool = False) -> list[str]:
    """Mistakes in `key=value` words; the values of a sweep are left to Hydra, which expands them."""
    lines: list[str] = []
    for word in overrides:
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            lines.append(f"'{word}' is not key=value")
            continue
        key, value = match["key"], match["value"]
        if match["sign"] == "~":
            lines.append(f"'{word}': a setting cannot be deleted; give it another value")
            continue
        if value is None:
            lines.append(_not_an_override(word))
            continue
        if problem := size_problem(value):
            lines.append(f"{key}: {problem}")
            continue
        content = _nested(key, _parsed(value))
        forbidden = list(_forbidden(content))
        if forbidden or key.split(".")[0].split("/")[0] == "hydra":
            lines += forbidden
        elif sweep:
            lines += [line for line in _in_mapping(content, stage, config_dir) if line.startswith("unknown key")]
        else:
            lines += _in_mapping(content, stage, config_dir)
    return lines


def keys_of_word(word: str) -> list[str]:
    """List the dotted keys that a `key=value` word sets; none where it chooses the option of a group."""
    match = _OVERRIDE.fullmatch(word)
    if match is None or match["value"] is None:
        return []
    key, value = match["key"], _parsed(match["value"])
    if key in GROUPS and isinstance(value, str):
        return []
    return [name for name, _ in flat({key: value})] if isinstance(value, Mapping) else [key]


def hidden_templates(overlays: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """One line for each template chosen by name where a file, given with it or before it, would be taken instead.

    A file given after a name is how a recipe's template is replaced, and is no mistake.
    """
    words = [_nested(m["key"], _parsed(m["value"])) for w in overrides if (m := _OVERRIDE.fullmatch(w)) and m["value"]]
    layers = [(f"{path}: ", [content]) for path, content in overlays.items()] + [("", words)]
    lines, file = [], None
    for where, contents in layers:
        named = None
        for content in contents:
            section = content.get("template") or {}
            options = [item for item in content.get("defaults", []) if isinstance(item, Mapping)]
            named = next((name for item in options for group, name in item.items() if "/template" in group), named)
            if isinstance(section, str):
                named = section
            elif isinstance(section, Mapping):
                named, file = section.get("name", named), section.get("file", file)
        if named is not None and file is not None:
            lines.append(f"{where}template {named} has no effect beside template.file={file}: set template.file=null")
    return lines


def _parsed(text: str) -> Any:
    """A value as OmegaConf reads it in a file, where 1e-3 is a number; text that is no YAML stays text."""
    try:
        content = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
        assert isinstance(content, dict)
        return content["value"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError):
        return text


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _not_an_override(word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return f"'{word}' is not key=value: a configuration file is given as config={word}"
    return f"'{word}' is not key=value"


def _forbidden(content: Any, where: str = "") -> Iterator[str]:
    """What would run code: `_target_` anywhere, and Hydra's own factories."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            name = f"{where}{key}"
            if key == "_target_":
                yield f"{name} is refused: a configuration file must not name code to run"
            elif where == "" and key == "hydra" and isinstance(value, Mapping):
                for section in value:
                    if str(section).split("@")[0] not in _HYDRA_SECTIONS:
                        yield (
                            f"hydra.{section} is refused: it can run code; of hydra only "
                            f"{', '.join(_HYDRA_SECTIONS)} may be set"
                        )
            yield from _forbidden(value, f"{name}.")
    elif isinstance(content, list):
        for value in content:
            yield from _forbidden(value, where)


def _in_mapping(
    values: Mapping[str, Any], stage: str, config_dir: Path | None, prefix: str = "", section: Any = None
) -> Iterator[str]:
    section = section or JOBS[stage]()
    open_sections = upstream.OPEN_SECTIONS.get(stage, {})
    known = {item.name: getattr(section, item.name) for item in dataclasses.fields(section)}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if not prefix and key == "defaults":
            yield from _in_defaults(value, config_dir)
            continue
        if not prefix and key == "hydra":
            continue
        if key not in known:
            yield f"unknown key '{dotted}'{_suggestion(dotted, stage)}"
            continue
        is_section = dataclasses.is_dataclass(known[key])
        if not prefix and key in GROUPS and isinstance(value, str):
            yield from _wrong_option(key, value, config_dir)
        elif is_section and isinstance(value, Mapping):
            yield from _in_mapping(value, stage, config_dir, f"{dotted}.", known[key])
        elif is_section:
            yield f"{dotted} is a section of settings: give it keys, such as {dotted}.{_first_setting(known[key])}"
        elif dotted in open_sections and isinstance(value, Mapping):
            argument_class, owned = open_sections[dotted]
            yield from upstream.problems(value, argument_class, dotted, owned)
        else:
            yield from _wrong_type(dotted, key, value, section)


def _in_defaults(value: Any, config_dir: Path | None) -> Iterator[str]:
    """A file's own `defaults` list: `- override /model: tiny_gpt2` items."""
    for item in value if isinstance(value, list) else [value]:
        if item == "_self_":
            continue
        (entry, option), *more = (isinstance(item, Mapping) and item.items()) or [(item, None)]
        group = str(entry).removeprefix("override").strip().removeprefix("/")
        if more or not str(entry).startswith("override ") or group not in GROUPS:
            yield f"defaults: {item!r}: write '- override /GROUP: OPTION', with one of {', '.join(GROUPS)}"
        else:
            yield from _wrong_option(group, str(option), config_dir)


def _first_setting(section: Any) -> str:
    return dataclasses.fields(section)[0].name


def _suggestion(dotted: str, stage: str) -> str:
    keys = [key for key, *_ in settings(JOBS[stage]())]
    leaf = dotted.rsplit(".", 1)[-1]
    elsewhere = [key for key in keys if key.rsplit(".", 1)[-1] == leaf]
    for open_section, (argument_class, _) in upstream.OPEN_SECTIONS.get(stage, {}).items():
        if leaf in upstream.argument_types(argument_class):
            elsewhere.append(f"{open_section}.{leaf}")
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    sections = {key.split(".")[0] for key in keys}
    return did_you_mean(dotted, [*keys, *sections]) or did_you_mean(leaf, [key.rsplit(".", 1)[-1] for key in keys])


def _wrong_option(group: str, value: str, config_dir: Path | None) -> Iterator[str]:
    options = group_options(group, config_dir)
    if value not in options:
        way_out = {
            "model": f"; a hub id or a folder is given as model.name={value}",
            "data": f"; a file or a hub id is given as data.path={value}",
            "template": f"; a template file is given as template.file={value}",
        }.get(group, "")
        hint = did_you_mean(value, options) or way_out
        yield f"no option '{value}' in the group '{group}', which has {', '.join(options)}{hint}"


def _wrong_type(dotted: str, key: str, value: Any, section: Any) -> Iterator[str]:
    if isinstance(value, str) and "${" in value:
        return
    if isinstance(default := getattr(section, key), StrEnum):
        names = [str(member) for member in type(default)]
        if not isinstance(value, str) or value not in names:
            yield f"{dotted} is {value!r}: choose {', '.join(names)}{did_you_mean(str(value), names)}"
        return
    node: DictConfig = OmegaConf.structured(section)
    try:
        node[key] = value
    except OmegaConfBaseException as error:
        yield f"{dotted} is {value!r}: {str(error).splitlines()[0]}"
