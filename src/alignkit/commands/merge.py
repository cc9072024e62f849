"""Merge an adapter into the weights it sits on, and check that nothing else changed."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from alignkit.choices import Dtype, ReasoningForm, ToolsForm
from alignkit.errors import AlignkitError, ConfigError, ModelError, OutputError
from alignkit.evaluate.adapter_merge import (
    ARITHMETIC,
    BOUNDS,
    largest_difference,
    logprobs_in,
    merge_adapter,
    merged_dtype,
)
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.trained import example_rows
from alignkit.jobs import MergeJob
from alignkit.models.load import check_model, load_model, merge_problems
from alignkit.models.memory import explain_out_of_memory
from alignkit.models.save import save_model
from alignkit.models.source import ModelSource, unmergeable
from alignkit.runs.directory import Run
from alignkit.runs.full_disk import is_disk_full
from alignkit.runs.given import Given
from alignkit.runs.lock import hold
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.manifest import lineage
from alignkit.runs.result import seal_result
from alignkit.runs.template import recorded_kwargs, run_columns, run_forms, run_template_kwargs

logger = logging.getLogger(__name__)

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_NEEDS = "the sums are made in float32, which takes four bytes for each weight"


def run(
    job: MergeJob,
    *,
    out: Path,
    record: Mapping[str, Any] | None = None,
    inputs: Mapping[str, dict[str, str]] | None = None,
) -> None:
    """Write a plain model folder that computes what the adapter computes, or nothing.

    The sums are made in float32 and rounded once. What was written is loaded again and compared, in an arithmetic finer
    than its weights, on the prompts and answers of the run, or on rows that ship with alignkit where it has none.

    Args:
        job: the settings.
        out: the folder.
        record: the settings as they were given, interpolations unresolved: as such they are written out.
        inputs: checksums of what it reads, for the record.

    Raises:
        ConfigError, ModelError: the user's mistake, or a difference past the bound; `out` is not there then.
    """
    check(job, out)
    with run_log(ASIDE), explain_out_of_memory(_NEEDS), hold(out, out.with_name(f".{out.name}.lock")), _explained(out):
        if out.exists():  # written since we looked, by who held it before us
            raise ConfigError(_exists(out))
        exact = replace(job.model, dtype=Dtype.float32)
        model = ServedModel.of(exact, job.template).load(seed=0)
        rows = example_rows(model)
        dtype = merged_dtype(job.model)
        arithmetic = ARITHMETIC[dtype]
        before = logprobs_in(arithmetic, model.weights, rows, pad_id=model.pad_id)
        merged = merge_adapter(model)
        torch.nn.Module.to(merged, dtype)
        aside = out.with_name(f".{out.name}.unchecked")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            entry = Run(
                aside,
                "merge",
                Given(settings_with_forms(job, record)),
                parents=lineage({"model.name": job.model.name}, out),
                inputs=dict(inputs or {}),
            )
            entry.begin()
            save_model(merged, model.tokenizer, aside, jinja=model.template.jinja, stop_ids=model.template.stop_ids)
            model.unload()
            written = load_model(replace(exact, name=str(aside)), tokenizer=model.tokenizer, seed=0, trainable=False)
            difference = largest_difference(before, logprobs_in(arithmetic, written, rows, pad_id=model.pad_id))
            bound = job.max_difference if job.max_difference is not None else BOUNDS[dtype]
            figures = (
                f"{difference:.2e} nats over {sum(map(len, before)):,} tokens of {len(rows)} rows "
                f"(bound {bound:g}, {_dtype_name(dtype)} weights in {_dtype_name(arithmetic)} arithmetic)"
            )
            if not difference <= bound:
                raise ModelError(
                    f"max_difference: the merged model differs from the adapter by {figures}; nothing was written: "
                    "raise the bound if that is good enough, or take model.dtype=float32"
                )
            entry.result = {"largest_difference": difference}
            seal_result(aside)
            entry.write("finished")
            aside.replace(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        logger.info("largest difference  %s", figures)
        logger.info("model               %s", out)


def settings_with_forms(job: MergeJob, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings with what later commands render with as the run did: the folder may go where it is not."""
    record, folder = dict(given or asdict(job)), ModelSource.of(job.model).folder
    kwargs = {**(run_template_kwargs(folder) or {}), **recorded_kwargs(record)}
    tools, reasoning = run_forms(folder) or (ToolsForm.native, ReasoningForm.native)
    return {
        **record,
        "template": {**record["template"], "kwargs": kwargs},
        "data": {"tools": str(tools), "reasoning": str(reasoning), "columns": run_columns(folder)},
    }


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check(job: MergeJob, out: Path) -> None:
    """Find what is wrong before a weight is read.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = []
    try:
        check_model(job.model)
        problems += merge_problems(job.model) + unmergeable(job.model)
    except AlignkitError as error:
        problems += error.problems
    if out.exists():
        problems.append(_exists(out))
    elif not next(parent for parent in out.absolute().parents if parent.exists()).is_dir():
        problems.append(f"{out} cannot be written: part of its path is a file")
    if problems:
        raise ConfigError(*problems)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _TAKEN:  # by who asks for no lock of ours
            raise ConfigError(_exists(out)) from error
        if isinstance(error, AlignkitError) or not is_disk_full(error):  # standard output has words of its own
            raise
        raise OutputError(f"{out} cannot be written: its disk is full; nothing is left of it") from error


def _exists(out: Path) -> str:
    return f"{out} exists already: name another folder or remove it"
