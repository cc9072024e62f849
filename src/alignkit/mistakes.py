"""Every mistake in the user's files and overrides, found before Hydra composes them.

Hydra stops at the first mistake and speaks of its own machinery; a person wants all of them, each with the way out.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignkit import upstream
from alignkit.config import FormsConfig
from alignkit.errors import ConfigError, as_yaml, close_to, did_you_mean
from alignkit.jobs import JOBS, StageJob, settings
from alignkit.quoting import delimiters, quoted, repaired, typed_word, with_text_quoted
from alignkit.runs.manifest import flat
from alignkit.wrong_values import LISTS, wrong_type
from alignkit.yaml_size import size_problem

GROUPS = ("model", "data", "template", "lora", "sampling")

# Sections of `hydra` that place and launch runs; the others (callbacks, logging factories) can run code from a file.
_HYDRA_SECTIONS = ("run", "sweep", "sweeper", "launcher", "mode", "job")
_OVERRIDE = re.compile(r"(?P<sign>\+\+?|~)?(?P<key>[^=\s]+)(?:=(?P<value>.*))?", re.DOTALL)


def groups_of(stage: str) -> list[str]:
    """Return the groups that a job has; a section `data` without a path has no options."""
    known = {item.name: getattr(JOBS[stage](), item.name) for item in dataclasses.fields(JOBS[stage])}
    return [name for name in GROUPS if name in known and not isinstance(known[name], FormsConfig)]


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
        lines += [f"{path}: {line}" for line in _in_content(content, stage, config_dir)]
    for file in sorted(config_dir.rglob("*.yaml")) if config_dir else []:
        try:
            content = read_yaml(file)
        except ConfigError as error:
            lines += error.problems
        else:
            lines += [f"{file}: {line}" for line in _forbidden(content)]
    return lines


def file_of(setting: str, overlays: Mapping[str, Any]) -> str:
    """Begin a line with the last file that gives a setting; empty where it was typed, or is of the stage."""
    found = ""
    for path, content in overlays.items():
        node: Any = content
        for part in re.split(r"[.\[]", setting):
            node = node.get(part) if isinstance(node, Mapping) else node
        found = f"{path}: " if node is not None else found
    return found


def without_mistakes(stage: str, content: Mapping[str, Any], config_dir: Path | None) -> dict[str, Any]:
    """What is sound of a file's content, so that it can be composed and looked at further."""

    def sound(values: Mapping[str, Any], above: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in values.items():
            if not list(_in_content(_nested(f"{above}{key}", value), stage, config_dir)):
                kept[key] = value
            elif isinstance(value, Mapping):
                rest = sound(value, f"{above}{key}.")
                kept |= {key: rest} if rest else {}
        return kept

    return sound(content, "")


def in_override(
    stage: str,
    word: str,
    config_dir: Path | None,
    sweeps: Callable[[str], bool],
    *,
    sweep: bool = False,
    before: str = "",
) -> list[str]:
    """Mistakes in a `key=value` word.

    Args:
        stage: a key of `JOBS`.
        word: as it was typed.
        config_dir: with group options of the user's own.
        sweeps: tells whether a value is read as several, which make a sweep; raises ValueError where it is unreadable.
        sweep: several values are run one after the other; what they are is left to Hydra, which expands them.
        before: the word typed before it, to which it may belong.
    """
    match = _OVERRIDE.fullmatch(word)
    if match is not None and match["sign"] == "~":
        return [f"'{word}': a setting cannot be deleted; give it another value"]
    if match is None or match["value"] is None:
        return [_not_an_override(word, before)]
    key, value = match["key"], match["value"]
    if problem := size_problem(value):
        return [f"{key}: {problem}"]
    content = _nested(key, _parsed(value))
    forbidden = list(_forbidden(content))
    unread = _unreadable(stage, key, value, sweeps, sweep=sweep)
    if forbidden or key.split(".")[0].split("/")[0] == "hydra":
        return forbidden + unread
    found = list(_in_mapping(content, stage, config_dir, typed=True))
    if sweep or unread:
        found = [line for line in found if line.startswith("unknown key")] + unread
    return found


def _unreadable(stage: str, key: str, value: str, sweeps: Callable[[str], bool], *, sweep: bool) -> list[str]:
    """What keeps a value from being read as one, with the word to type instead; an empty list where nothing does."""

    def is_readable(text: str) -> bool:
        try:
            return not sweeps(with_text_quoted(text)) or sweep
        except ValueError:
            return False

    if is_readable(value):
        return []
    try:
        sweeps(with_text_quoted(value))
    except ValueError:
        if meant := re.search(r"\s([\w.]+=.*)", value):
            first = typed_word(key, value[: meant.start()])
            return [f"'{key}={value}' is two settings in one word: type {first} {shlex.quote(meant[1])}"]
        if re.search(r"\$\{[^}]*$", value):
            return [f"{key}={value}: '${{' is not closed; a variable of the environment is ${{oc.env:NAME}}"]
        if value.endswith(",") and value.strip(", ") and is_readable(value.rstrip(", ")):
            return [f"{key}={value} ends in a comma: type {typed_word(key, value.rstrip(', '))}"]
        if value[:1] in ("[", "{") and is_readable(repaired(value)):
            kind = "list" if value[0] == "[" else "mapping"
            return [f"{key}={value} cannot be read as a {kind}: type {typed_word(key, repaired(value))}"]
        return [f"{key}={value}: what has {delimiters(value)} in it must be quoted: type {_as_text(key, value)}"]
    return [_several(stage, key, value)]


def _several(stage: str, key: str, value: str) -> str:
    """Say what several values can mean for a setting, each with the word to type."""
    kind, ways = _kind_of(stage, key), []
    if re.fullmatch(r"-?\d+,\d+(e-?\d+)?", value) and kind == "float":
        ways.append(f"a number has a point: {key}={value.replace(',', '.')}")
    if kind in (*LISTS, "Any"):
        ways.append(f"a list is typed {typed_word(key, f'[{value}]')}")
    if kind in ("str", "Any"):
        ways.append(f"one text is typed {_as_text(key, value)}")
    if issubclass(JOBS[stage], StageJob):
        ways.append("a sweep over them needs --multirun")
    return f"{key}={value} is several values: {'; '.join(ways) or 'give one'}"


def _kind_of(stage: str, key: str) -> str:
    """What a setting takes: the name of a type, `group` of options, or `Any` of several types."""
    if key in GROUPS:
        return "group"
    for name, item, _ in settings(JOBS[stage]()):
        if name == key:
            return "float" if item.metadata.get("schedule") else str(item.type).removesuffix(" | None")
    section, _, leaf = key.partition(".")
    argument_class, _ = upstream.OPEN_SECTIONS.get(stage, {}).get(section, (None, {}))
    names = set(
        re.findall(r"\w+", upstream.argument_types(argument_class).get(leaf, "str") if argument_class else "str")
    )
    return "float" if names & {"int", "float"} and not names & {"str", "list", "dict"} else "Any"


def _as_text(key: str, value: str) -> str:
    return typed_word(key, quoted(value))


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


def _in_content(content: Mapping[str, Any], stage: str, config_dir: Path | None) -> Iterator[str]:
    yield from _forbidden(content)
    yield from _in_mapping(content, stage, config_dir)


def _not_an_override(word: str, before: str) -> str:
    if word == "=":
        return "'=' stands alone: a setting is typed without spaces, as key=value"
    if word.endswith((".yaml", ".yml")):
        return f"'{word}' is not key=value: a configuration file is given as {typed_word('config', word.lstrip('='))}"
    key, mark, value = re.split(r"\s*([=:])\s*", word, maxsplit=1) if re.search("[=:]", word) else (word, "", "")
    if mark and re.fullmatch(r"[A-Za-z][\w.]*", key) and value:
        return f"'{word}' is not key=value: type {typed_word(key, value)}"
    key, mark, value = before.partition("=")
    if mark and re.fullmatch(r"[\w.]+", key) and not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word):
        return f"'{word}' is not key=value; if it belongs to {before}, type {typed_word(key, f'{value} {word}')}"
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
    values: Mapping[str, Any],
    stage: str,
    config_dir: Path | None,
    prefix: str = "",
    section: Any = None,
    *,
    typed: bool = False,
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
            for unknown in _as_typed(dotted, value, _places(stage)) if typed else [dotted]:
                yield f"unknown key '{unknown}'{_suggestion(unknown, stage)}"
            continue
        is_section = dataclasses.is_dataclass(known[key])
        if not prefix and key in groups_of(stage) and isinstance(value, str):
            yield from _wrong_option(key, value, config_dir)
        elif is_section and isinstance(value, Mapping):
            yield from _in_mapping(value, stage, config_dir, f"{dotted}.", known[key], typed=typed)
        elif is_section:
            yield f"{dotted} is a section of settings: give it keys, such as {dotted}.{_first_setting(known[key])}"
        elif dotted in open_sections and isinstance(value, Mapping):
            argument_class, owned = open_sections[dotted]
            yield from upstream.problems(value, argument_class, dotted, owned)
        else:
            yield from wrong_type(dotted, key, value, section, typed=typed)


def _in_defaults(value: Any, config_dir: Path | None) -> Iterator[str]:
    """A file's own `defaults` list: `- override /model: tiny_gpt2` items."""
    for item in value if isinstance(value, list) else [value]:
        if item == "_self_":
            continue
        (entry, option), *more = (isinstance(item, Mapping) and item.items()) or [(item, None)]
        group = str(entry).removeprefix("override").strip().removeprefix("/")
        if more or not str(entry).startswith("override ") or group not in GROUPS:
            yield f"defaults: {as_yaml(item)}: write '- override /GROUP: OPTION', with one of {', '.join(GROUPS)}"
        else:
            yield from _wrong_option(group, str(option), config_dir)


def _first_setting(section: Any) -> str:
    return dataclasses.fields(section)[0].name


def _as_typed(dotted: str, value: Any, places: Mapping[str, str]) -> Iterator[str]:
    """The keys of words of which Hydra has made an unknown section, each down to a name that is a setting elsewhere."""
    if isinstance(value, Mapping) and value and dotted.rsplit(".", 1)[-1] not in places:
        for key, below in value.items():
            yield from _as_typed(f"{dotted}.{key}", below, places)
    else:
        yield dotted


def _places(stage: str) -> dict[str, str]:
    """Where a setting of each last name is: `limit` in `data.limit`, `learning_rate` in `train.learning_rate`."""
    arguments = [
        f"{open_section}.{argument}"
        for open_section, (argument_class, _) in upstream.OPEN_SECTIONS.get(stage, {}).items()
        for argument in upstream.argument_types(argument_class)
    ]
    keys = [key for key, *_ in settings(JOBS[stage]())]
    return {key.rsplit(".", 1)[-1]: key for key in reversed([*keys, *arguments])}


def setting_named(stage: str, name: str) -> str | None:
    """Find the setting, or the group, that somebody means who writes its last name alone, with dashes or without."""
    dotted = name.replace("-", "_")
    if dotted in (*groups_of(stage), *(key for key, *_ in settings(JOBS[stage]()))):
        return dotted
    return _places(stage).get(upstream.RENAMED.get(dotted, dotted).rsplit(".", 1)[-1])


def _suggestion(dotted: str, stage: str) -> str:
    keys = [key for key, *_ in settings(JOBS[stage]())]
    leaf = dotted.rsplit(".", 1)[-1]
    places = _places(stage)
    if leaf in places:
        return f"; did you mean '{places[leaf]}'?"
    if leaf in upstream.RENAMED and stage in upstream.OPEN_SECTIONS:
        return f"; use {places.get(upstream.RENAMED[leaf], upstream.RENAMED[leaf])}"
    sections = dict.fromkeys(key.split(".")[0] for key in keys)
    return (
        did_you_mean(dotted, [*keys, *sections])
        or "".join(f"; did you mean '{places[close]}'?" for close in close_to(leaf, places))
        or f"; the settings are {', '.join(sections)}"
    )


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
