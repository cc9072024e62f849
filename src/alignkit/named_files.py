"""The files and folders that a job names, and the rows in them, looked at before anything heavy is imported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.choices import Init
from alignkit.config import ModelConfig
from alignkit.data.rows.preferences import PAIRS
from alignkit.data.rows.prompts import prompt_kind
from alignkit.data.rows.row_kind import CONVERSATIONS, RowKind
from alignkit.data.sets.items import parse_sets, read_sets
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.section import check_data
from alignkit.errors import AlignkitError, did_you_mean_path
from alignkit.jobs import DpoJob, MergeJob, PpoJob, RewardJob, SftJob, StageJob
from alignkit.models.source import ModelSource, near_models, source_problems, unmergeable
from alignkit.rewards.source import RewardSource, parse_rewards


def named_problems(job: Any) -> list[str]:
    """List the files, folders and sources of rewards that a job names and cannot take, one line each."""
    problems = []
    if job.model.name and job.model.init is Init.pretrained:
        wants_reward = False if isinstance(job, StageJob) else None
        problems += source_problems(ModelSource.of(job.model), wants_reward=wants_reward)
        problems += unmergeable(job.model) if isinstance(job, MergeJob) and not problems else []
    if isinstance(job, (SftJob, RewardJob, DpoJob)) and job.data.path:
        problems += check_data(job.data, CONVERSATIONS if isinstance(job, SftJob) else PAIRS)
    elif isinstance(job, PpoJob) and isinstance(job.data.path, str) and job.data.path:
        # Its rows may be of either kind: whether format and columns fit them is looked at with the rows.
        problems += check_data(replace(job.data, format="auto", columns={}))
    if hasattr(job, "template") and job.template.file:
        problems += _template_problems(Path(job.template.file))
    if hasattr(job, "reference") and job.reference.name:
        problems += _named(job.reference.name, "reference.name")
    if hasattr(job, "value") and job.value.start and not Path(job.value.start).is_dir():
        problems.append(f"value.start: there is no run directory {job.value.start}{near_models(job.value.start)}")
    if hasattr(job, "reward"):
        problems += _reward_problems(job.reward)
    return problems


def row_problems(job: StageJob) -> list[str]:
    """List what is wrong with the first rows of each source, one line each, as far as no tokenizer is needed."""
    kind: RowKind[Any] = CONVERSATIONS if isinstance(job, SftJob) else PAIRS
    kind = prompt_kind(job.data.prompt_length) if isinstance(job, PpoJob) else kind
    if not job.data.path or check_data(job.data, kind):
        return []  # which `named_problems` tells
    try:
        rows = read_sets(replace(job.data, streaming=True), kind, seed=job.seed)  # the first ones alone
        parse_sets(rows, kind, Ledger(), malformed=job.data.malformed)
    except AlignkitError as error:
        return list(error.problems)
    return []


def _template_problems(file: Path) -> list[str]:
    if file.is_file():
        return []
    near = did_you_mean_path(file, file.parent.glob("*"))
    return [f"template.file={file}: {'it is a folder' if file.is_dir() else f'no such file{near}'}"]


def _named(name: str, setting: str) -> list[str]:
    found = source_problems(ModelSource.of(ModelConfig(name)))
    return [line.replace("model.name", setting, 1) for line in found]


def _reward_problems(reward: Any) -> list[str]:
    try:
        sources = parse_rewards(reward)
    except AlignkitError as error:
        return list(error.problems)
    return [line for source in sources for line in _source_problems(source)]


def _source_problems(source: RewardSource) -> list[str]:
    if source.model is not None and not Path(source.model).is_dir():
        spelled = f"a classifier is named with its label: {{classifier: {source.model}, label: LABEL}}"
        near = near_models(source.model) or f"; {spelled}"
        return [f"{source.setting_of('model')}: there is no run directory {source.model}{near}"]
    place, mark, _ = source.function.rpartition(":") if isinstance(source.function, str) else ("", "", "")
    if mark and place.endswith(".py") and not Path(place).is_file():
        near = did_you_mean_path(Path(place), Path(place).parent.glob("*.py"))
        return [f"{source.setting}: {source.function}: there is no file {place}{near}"]
    return []
