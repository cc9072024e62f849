"""Shell completion of keys, values, groups and files behind `alignkit <stage>`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from alignkit import upstream
from alignkit.jobs import JOBS, settings
from alignkit.mistakes import GROUPS, group_options, groups_of
from alignkit.recipes import recipe_folder, recipe_names

_FILES = ("config", "data.path", "data.eval_path", "template.file", "model.name")


def complete(stage: str, incomplete: str) -> list[str]:
    """Every word that `incomplete` can grow into.

    Sections complete to their dotted keys, `train.` and `lora.` to upstream's, `model=` to the group's options,
    `data.overlength=` to its choices and `config=` to files and recipes.
    """
    if stage not in JOBS:
        return []
    key, equals, value = incomplete.partition("=")
    words = _values(stage, key, value) if equals else _keys(stage)
    return [word for word in words if word.startswith(incomplete)]


def _keys(stage: str) -> list[str]:
    keys = ["config=", *(f"{group}=" for group in groups_of(stage))]
    keys += [f"{key}=" for key, item, _ in settings(JOBS[stage]()) if "dict" not in str(item.type)]
    for section, (argument_class, owned) in upstream.OPEN_SECTIONS.get(stage, {}).items():
        keys += [f"{section}.{name}=" for name in upstream.argument_types(argument_class) if name not in owned]
    return keys


def _files(begun: str, *, only_yaml: bool) -> list[str]:
    """Files and folders that begin like this, spelled as it is; the inside of a folder that is alone in doing so."""
    folder, _, name = begun.rpartition("/")
    prefix = f"{folder}/" if "/" in begun else ""
    try:
        entries = sorted(Path(prefix or ".").iterdir())
    except OSError:
        return []
    found = [
        f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(name)
        and (name.startswith(".") or not entry.name.startswith("."))
        and (entry.is_dir() or not only_yaml or entry.suffix in (".yaml", ".yml"))
    ]
    inside = _files(found[0], only_yaml=only_yaml) if len(found) == 1 and found[0].endswith("/") else []
    return inside or found


def _values(stage: str, key: str, value: str) -> list[str]:
    if key in GROUPS:
        return [f"{key}={option}" for option in group_options(key)]
    if key in _FILES:
        names = _files(value, only_yaml=key == "config") + (recipe_names(recipe_folder()) if key == "config" else [])
        return [f"{key}={name}" for name in names]
    default = {name: value for name, _, value in settings(JOBS[stage]())}.get(key)
    if isinstance(default, StrEnum):
        return [f"{key}={member}" for member in type(default)]
    if isinstance(default, bool):
        return [f"{key}=true", f"{key}=false"]
    return []
