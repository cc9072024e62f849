"""Shell completion of keys, values, groups and files behind `alignkit <stage>`."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path

from alignkit import upstream
from alignkit.config import JOBS, settings
from alignkit.mistakes import GROUPS, group_options


def complete(stage: str, incomplete: str) -> list[str]:
    """Every word that `incomplete` can grow into.

    Sections complete to their dotted keys, `train.` and `lora.` to upstream's, `model=` to the group's options,
    `data.overlength=` to its choices and `config=` to files.
    """
    if stage not in JOBS:
        return []
    key, equals, value = incomplete.partition("=")
    words = _values(stage, key, value) if equals else _keys(stage)
    return [word for word in words if word.startswith(incomplete)]


def _keys(stage: str) -> list[str]:
    fields = {item.name for item in dataclasses.fields(JOBS[stage])}
    keys = ["config=", *(f"{group}=" for group in GROUPS if group in fields)]
    keys += [f"{key}=" for key, item in settings(JOBS[stage]) if "dict" not in str(item.type)]
    for section, (argument_class, owned) in upstream.OPEN_SECTIONS.get(stage, {}).items():
        keys += [f"{section}.{name}=" for name in upstream.argument_types(argument_class) if name not in owned]
    return keys


def _values(stage: str, key: str, value: str) -> list[str]:
    if key in GROUPS:
        return [f"{key}={option}" for option in group_options(key)]
    if key == "config" or key.endswith(("path", "file", "name")):
        folder = Path(value).parent if value and not value.endswith("/") else Path(value or ".")
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        wanted = [path for path in found if path.is_dir() or key != "config" or path.suffix in (".yaml", ".yml")]
        return [f"{key}={path}{'/' if path.is_dir() else ''}" for path in wanted]
    kinds = {name: item.default for name, item in settings(JOBS[stage])}
    default = kinds.get(key)
    if isinstance(default, StrEnum):
        return [f"{key}={member}" for member in type(default)]
    if isinstance(default, bool):
        return [f"{key}=true", f"{key}=false"]
    return []
