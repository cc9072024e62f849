"""How every stage begins: the run directory guarded, upstream quiet, and one screen of what will happen."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from alignkit.choices import EvalGroups, Resume
from alignkit.data.sets.ledger import Ledger
from alignkit.jobs import PpoJob, StageJob
from alignkit.models.memory import explain_out_of_memory
from alignkit.models.source import ModelSource
from alignkit.pages.report import keep_report
from alignkit.rewards.source import with_function_named
from alignkit.runs.directory import Run, guard_run
from alignkit.runs.given import Given
from alignkit.runs.log import is_main_process, run_log
from alignkit.runs.manifest import lineage, read_manifest, recorded_groups
from alignkit.runs.result import check_results
from alignkit.stages.inputs import model_sections, record_inputs
from alignkit.stages.shortage import what_to_lower
from alignkit.terminal import Lines, steady_streams
from alignkit.training.processes import meet_again, parted_at_exit
from alignkit.training.session import TO_GO_ON

logger = logging.getLogger(__name__)

_PRECISION = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # as `accelerate launch` may have said, too


@contextmanager
def open_run(job: StageJob, stage: str, run_dir: Path, given: Given | None, trainer_class: type) -> Iterator[Run]:
    """Hold the run directory of a job for as long as its stage works; a stage returns at once where `finished` is true.

    Args:
        job: of the stage, checked.
        stage: its name.
        run_dir: of this run.
        given: the settings as they were given; None records the job itself.
        trainer_class: what trains; one of the user's own is an input of the run.

    Yields:
        The run; the stage calls `begin` once every check has passed. How rows are held out is settled in `job.data`: as
        the run began.
    """
    given = given or Given(_settings_of(job))
    guard = guard_run(
        run_dir, stage=stage, given=given, resume=Resume(str(job.resume).lower()), overwrite=job.overwrite
    )
    explained = explain_out_of_memory(
        what_to_lower(job),
        doing=lambda: f"{stage}, outside of a step",
        then=lambda: TO_GO_ON if any(run.begun for run in opened) else "; nothing was written",
    )
    streams = steady_streams(_say_lost)
    meet_again()
    with parted_at_exit(), streams, run_log() as log, _report_at_end(run_dir) as opened, guard as run, explained:
        opened.append(run)
        if run.finished:
            logger.info("%s is finished: there is nothing to resume, and nothing was changed", run_dir)
        else:
            sources = [ModelSource.of(section) for section in model_sections(job).values()]
            check_results(*(source.folder for source in sources), *(source.base.folder for source in sources))
            if is_main_process():
                record_inputs(run, job, trainer_class)
            _agree_on_time(run)
        run.parents = lineage({setting: section.name for setting, section in model_sections(job).items()}, run_dir)
        if job.data.eval_fraction and not run.finished:
            job.data.eval_groups = _eval_groups(job, run)
            run.eval_groups = str(job.data.eval_groups)
        run.on_begin = partial(log.open, run_dir / "log.txt")
        yield run


@contextmanager
def _report_at_end(run_dir: Path) -> Iterator[list[Run]]:
    """Write the page once the record says how a run ended; the block names the run that it opened."""
    opened: list[Run] = []
    try:
        yield opened
    finally:
        if any(run.begun for run in opened) and is_main_process():
            keep_report(run_dir)


def _settings_of(job: StageJob) -> dict[str, Any]:
    """The settings as plain values, a reward of Python's as its name."""
    if isinstance(job, PpoJob):
        job = replace(job, reward=[with_function_named(item) for item in job.reward])
    return asdict(job)


def _agree_on_time(run: Run) -> None:
    """Templates that ask for the date must see the same in every process."""
    if not run.resuming and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.accelerator.is_available())  # unasked, it sees no other process on a CPU
        (run.now,) = broadcast_object_list([run.now])


def _eval_groups(job: StageJob, run: Run) -> EvalGroups:
    chosen: EvalGroups | None = job.data.eval_groups
    began = recorded_groups(read_manifest(run.folder) or {}) if run.resuming else None
    if chosen is None and began is EvalGroups.prompt:
        logger.warning("rows are held out by whole prompts, as this run began; a new run keeps conversations together")
    return chosen or began or EvalGroups.conversation


def _say_lost(name: str, error: OSError) -> None:
    logger.warning("%s takes no more (%s): training goes on, and the log has all of it", name, error.strerror)


def over_budget(job: Any) -> Any:
    """Return the same job without a drop budget: `alignkit inspect` shows what a run would refuse."""
    return replace(job, data=replace(job.data, max_dropped=1.0))


def warn(*lines: str | None) -> None:
    """Log each line that there is."""
    for line in filter(None, lines):
        logger.warning("%s", line)


def log_plan(ledger: Ledger, trainer: Any, job: StageJob, facts: Mapping[str, str], run: Run) -> None:
    """Log one screen of what will happen: the rows by their fate, the model, the batches, the number of steps."""
    args, kwargs = trainer.args, job.template.kwargs
    num_all, num_trained = trainer.num_parameters()
    computing = _PRECISION.get(trainer.accelerator.mixed_precision, trainer.accelerator.mixed_precision)
    run.precision = computing
    all_facts = {
        "model": f"{job.model.name}: {num_all:,} parameters, {num_trained:,} of them trained; computing in {computing}",
        **facts,
        **(
            {"arguments": f"{json.dumps(kwargs)} of the template, in every row that has none of its own"}
            if kwargs
            else {}
        ),
        "steps": f"{trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]:,}",
        "run": str(run.folder),
    }
    logger.info("%s\n", Lines(ledger.table()))
    for name, fact in all_facts.items():
        logger.info("%-9s %s", name, fact)
