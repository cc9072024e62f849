"""What a run directory was trained with, read from its record."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from alignkit.choices import EvalGroups
from alignkit.config import DataConfig, ModelConfig, TemplateConfig
from alignkit.data.files.shipped import shipped_file
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import ConfigError
from alignkit.evaluate.likelihood import Row
from alignkit.evaluate.served_model import ServedModel
from alignkit.home import expand_home
from alignkit.json_files import get, read_objects
from alignkit.runs.manifest import parent_folders, read_manifest, recorded_groups
from alignkit.runs.template import recorded_kwargs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")

_NUM_ROWS = 16


def training_sections(folder: Path) -> tuple[ModelConfig, TemplateConfig] | None:
    """Read which model a run started from and which template it was trained with; None if the folder is no run.

    A merged folder was trained where its adapter was; a run that took over the template of another run points there,
    with arguments of its own.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    job = manifest.get("job", {})
    if manifest.get("stage") == "merge" or job.get("template", {}).get("name") == "native":
        parents = parent_folders(folder, manifest)
        earlier = next((found for parent in parents if (found := training_sections(parent))), None)
        if manifest.get("stage") == "merge":
            return earlier
        if earlier is not None:
            model, template = earlier
            return model, replace(template, kwargs=recorded_kwargs(job))
    if not {"model", "template"} <= job.keys():
        return None
    try:
        return _started_from(folder, manifest), _section(TemplateConfig, job["template"])
    except (TypeError, ValueError):  # a setting of a kind that it never has: the record is damaged
        return None


def _started_from(folder: Path, manifest: dict[str, Any]) -> ModelConfig:
    """The section `model` of a run; where its name is a step of a pipeline, the folder that this means."""
    model = _section(ModelConfig, manifest["job"]["model"])
    folders = zip(manifest.get("parents", []), parent_folders(folder, manifest), strict=True)
    named = [str(found) for parent, found in folders if parent.get("setting", "model.name") == "model.name"]
    return replace(model, name=named[0]) if named and "${" in model.name else model


def split_seed(data: DataConfig, names: Iterable[str], seed: int) -> int:
    """Settle the seed by which rows are held out: that of the runs that are measured.

    Args:
        data: the section.
        names: of the models; those that are no runs, or trained on other data, have no say.
        seed: where none has.

    Raises:
        ConfigError: the runs differ, so that rows held out of one were trained on by another.
    """
    if not data.eval_fraction:
        return seed
    found: dict[int, str] = {}
    for name, manifest in _runs_on(data, names):
        if manifest["job"]["data"].get("eval_fraction"):
            found.setdefault(manifest["job"].get("seed", 0), name)
    if len(found) > 1:
        each = " and ".join(f"{name} by seed {of_run}" for of_run, name in found.items())
        raise ConfigError(
            f"data.eval_fraction: rows were held out of {each}: evaluate them one by one, or give data.eval_path"
        )
    return next(iter(found), seed)


def _runs_on(data: DataConfig, names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the runs of these names that trained on the same path, each with its record."""
    for name in names:
        manifest = read_manifest(Path(expand_home(name)))
        if manifest is not None and manifest.get("job", {}).get("data", {}).get("path") == data.path:
            yield name, manifest


def held_out_groups(data: DataConfig, names: Iterable[str]) -> EvalGroups | None:
    """Settle how the rows that runs are measured on are held out: as each of these runs held them out.

    Args:
        data: the section; where it chooses itself, or holds nothing out, its choice is returned.
        names: of the models; those that are no runs, or trained on other data, have no say.

    Raises:
        ConfigError: the runs differ, so that rows held out of one were trained on by another.
    """
    if data.eval_groups is not None or not data.eval_fraction:
        return data.eval_groups
    found: dict[EvalGroups, str] = {}
    for name, manifest in _runs_on(data, names):
        groups = recorded_groups(manifest)
        if groups is not None:
            found.setdefault(groups, name)
    if len(found) > 1:
        each = " and ".join(f"{name} by {groups}" for groups, name in found.items())
        raise ConfigError(f"data.eval_groups: rows were held out of {each}: evaluate them one by one")
    return next(iter(found), None)


def example_answers(folder: Path | None) -> Iterator[tuple[str, str]]:
    """Yield prompts with answers: the samples of a run, or else rows that ship with alignkit."""
    samples = folder / "samples.jsonl" if folder is not None else None
    if samples is not None and samples.is_file():
        for row in read_objects(samples):
            answer = "wanted" if "wanted" in row else "after"  # PPO has no answer to copy
            yield get(row, "prompt", str, samples), get(row, answer, str, samples)
    else:
        for row in read_objects(shipped_file("heldout.jsonl")):
            yield "\n\n".join(filter(None, [row["instruction"], row.get("input")])), row["output"]


def example_rows(policy: ServedModel) -> list[Row]:
    """Encode the first examples for a model; every token is scored."""
    rows = []
    for prompt, answer in list(example_answers(Path(expand_home(policy.name))))[:_NUM_ROWS]:
        (ids,) = policy.encode([("row", Conversation((Message("user", prompt),)))])
        answer_ids: list[int] = policy.tokenizer(answer, add_special_tokens=False)["input_ids"]
        whole = [*ids, *answer_ids, policy.template.end_id]
        rows.append(Row(whole, whole))
    return rows


def _section(section: type[Section], values: dict[str, Any]) -> Section:
    """A dataclass of settings from its record, where an enum is a word."""
    kinds: dict[str, Any] = {item.name: type(item.default) for item in dataclasses.fields(section)}
    return section(
        **{
            name: kinds[name](value) if issubclass(kinds[name], StrEnum) else value
            for name, value in values.items()
            if name in kinds
        }
    )
