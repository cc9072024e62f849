"""What the `data` section names: the sets, and the sources of each, checked before a row is read."""

from __future__ import annotations

from typing import Any

from alignkit.config import DataConfig
from alignkit.data.files.sources import Source, check_sources, parse_sources
from alignkit.data.rows.row_kind import CONVERSATIONS, RowKind
from alignkit.errors import AlignkitError


def paths_by_set(data: DataConfig) -> dict[str, Any]:
    """Return the path or paths of each set: `train` first, then the held-out ones."""
    held_out = data.eval_path if isinstance(data.eval_path, dict) else {"eval": data.eval_path}
    return {"train": data.path} | {str(name): path for name, path in held_out.items() if path is not None}


def sources_of(data: DataConfig, name: str = "train", kind: RowKind[Any] = CONVERSATIONS) -> list[Source]:
    """Return the sources of a set.

    Args:
        data: the section.
        name: of the set.
        kind: what its rows are parsed as; its formats may be named.

    Raises:
        ConfigError: one line for each mistake.
    """
    setting, split = ("data.path", data.split) if name == "train" else ("data.eval_path", None)
    return parse_sources(
        paths_by_set(data)[name],
        setting=setting,
        format=data.format,
        columns=data.columns,
        split=split,
        fields=kind.fields,
    )


def check_data(data: DataConfig, kind: RowKind[Any] = CONVERSATIONS) -> list[str]:
    """List what is wrong with the section before a row is read, one line each; empty where all is well."""
    problems = []
    if data.eval_path is not None and data.eval_fraction > 0:
        problems.append("data.eval_path and data.eval_fraction both name held-out rows: give one of them")
    if data.eval_groups is not None and not data.eval_fraction:
        problems.append(f"data.eval_groups={data.eval_groups} has no effect: data.eval_fraction holds no rows out")
    if data.system is not None and not data.system.strip():
        problems.append("data.system is empty: give a system message, or leave it out")
    for name in paths_by_set(data):
        try:
            check_sources(sources_of(data, name, kind))
        except AlignkitError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))
