"""What commands are given by name, checked alike: the models to measure, and a file to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.models.load import check_model


def check_models(names: Sequence[str], section: ModelConfig, *, distinct: bool = False) -> list[str]:
    """List what is wrong with the models that a command names, one line each; empty if nothing is.

    Args:
        names: run directories, model folders or hub ids.
        section: the section `model`, which holds for each of them.
        distinct: refuse a name that is given twice.
    """
    problems = [] if names else ["there is no model: name a run directory, a model folder or a hub id"]
    if distinct:
        problems += [f"{name} is named twice" for name in dict.fromkeys(names) if list(names).count(name) > 1]
    return problems + [problem for name in names for problem in check_section(replace(section, name=name))]


def check_section(model: ModelConfig, *, wants_reward: bool = False) -> list[str]:
    """List what is wrong with a section `model`, one line each, without loading weights."""
    try:
        check_model(model, wants_reward=wants_reward)
    except AlignkitError as error:
        return list(error.problems)
    return []


def check_new_file(out: Path | None) -> list[str]:
    """Refuse an `--out` that exists."""
    if out is not None and out.exists():
        return [f"--out {out} exists already: name another file or remove it"]
    return []
