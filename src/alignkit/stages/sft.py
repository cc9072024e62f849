"""Supervised fine-tuning: from rows and a template to a trained run directory.

`run` trains; `inspect` shows what `run` would train on. Both begin with `prepare`, so they cannot differ.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit import upstream
from alignkit.config import Batching, SftJob
from alignkit.data.batching import Collator, padding_share
from alignkit.data.dataset import SftData, load_sft
from alignkit.data.inspect import Report
from alignkit.data.sources import check_sources, parse_sources
from alignkit.data.templates import Template, load_template
from alignkit.errors import AlignkitError, ConfigError
from alignkit.models.load import check_model, load_model, load_tokenizer, num_positions
from alignkit.sampling.settings import check as check_sampling

logger = logging.getLogger(__name__)

_DEFAULT_MAX_LENGTH = 2048


@dataclass
class Prepared:
    """What training needs besides the model."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    data: SftData
    batching: Batching
    collator: Collator


def check(job: SftJob) -> None:
    """Everything that can be known before a file is read or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = check_sampling(job.sampling)
    for section, (argument_class, owned) in upstream.OPEN_SECTIONS["sft"].items():
        problems += upstream.problems(getattr(job, section), argument_class, section, owned)
    for step in (_check_data, lambda job: check_model(job.model), _check_evaluation):
        try:
            step(job)
        except AlignkitError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)


def _check_data(job: SftJob) -> None:
    data = job.data
    evals = data.eval_path if isinstance(data.eval_path, dict) else {"eval": data.eval_path}
    problems = []
    for setting, value in [("data.path", data.path), *(("data.eval_path", path) for path in evals.values() if path)]:
        try:
            check_sources(
                parse_sources(value, setting=setting, format=data.format, columns=data.columns, split=data.split)
            )
        except AlignkitError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)


def _check_evaluation(job: SftJob) -> None:
    held_out = job.data.eval_path is not None or job.data.eval_fraction > 0
    if job.data.eval_path is not None and job.data.eval_fraction > 0:
        raise ConfigError("data.eval_path and data.eval_fraction both name held-out rows: give one of them")
    if held_out:
        return
    asking = [f"train.{key}" for key in ("load_best_model_at_end", "eval_on_start") if job.train.get(key)]
    asking += ["train.eval_strategy"] if job.train.get("eval_strategy", "no") != "no" else []
    asking += ["early_stopping"] if job.early_stopping else []
    if asking:
        raise ConfigError(*(f"{key} needs held-out rows: data.eval_path or data.eval_fraction" for key in asking))
