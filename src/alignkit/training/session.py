"""Train a run from its start or its newest sound checkpoint to its end or a signal, and save the result."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.data.encode.templates import Template
from alignkit.errors import Interrupted, TrainingError
from alignkit.models.memory import explain_out_of_memory
from alignkit.models.save import save_model
from alignkit.runs.full_disk import is_disk_full
from alignkit.training.checkpoints import checkpoints, newest_sound, step_of
from alignkit.training.durable import DurableTrainer
from alignkit.training.processes import explain_lost_process
from alignkit.training.sharding import gathered
from alignkit.training.signals import name_of

logger = logging.getLogger(__name__)

TO_GO_ON = "; that is another run, while resume=true goes on with this one where there is more memory"


def train(
    trainer: DurableTrainer,
    *,
    resume: bool,
    stage: str = "training",
    lower: str = "lower train.per_device_train_batch_size",
) -> None:
    """Train to the end.

    Args:
        trainer: ready to train.
        resume: go on from the newest checkpoint whose checksums are right; those passed over are named.
        stage: that trains, for messages.
        lower: the settings to lower where memory runs out, in words.

    Raises:
        Interrupted: a signal came; a checkpoint was saved.
        TrainingError: the loss is not finite, the disk is full, a tracker does not work, or another process is gone.
    """
    checkpoint = None
    if resume:
        checkpoint, passed_over = newest_sound(Path(str(trainer.args.output_dir)))
        for line in passed_over:
            logger.warning("passed over %s", line)
        logger.info("going on from %s", checkpoint or "the start: no checkpoint was saved yet")

    def step_at_work() -> str:
        return f"step {trainer.state.global_step + 1}"

    doing = explain_out_of_memory(lower, doing=lambda: f"{stage}, {step_at_work()}", then=lambda: TO_GO_ON)
    with _explain_trackers(trainer.args.report_to or ()), explain_lost_process(step_at_work), doing:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    step = trainer.state.global_step
    if trainer.interrupted:
        raise Interrupted(trainer.interrupted, f"stopped at step {step}, which is saved: go on with resume=true")
    if number := trainer.asked_too_late():
        if step not in map(step_of, checkpoints(Path(str(trainer.args.output_dir)))):
            logger.info("%s came after the last step, which no checkpoint has: the result is saved", name_of(number))
            return
        raise Interrupted(
            number, f"stopped after the last step, {step}, which is saved: resume=true goes on to write the result"
        )


@contextmanager
def _explain_trackers(names: Sequence[str]) -> Iterator[None]:
    """Say in one line what a tracker raises that is not set up (no key, no server)."""
    try:
        yield
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package not in names:
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TrainingError(f"train.report_to={package}: {reason}; set it up, or leave it out") from error


def save(
    trainer: Any,
    run_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    stop_ids: Sequence[int] | None,
) -> None:
    """Write the trained model into the run directory; every process must call this."""
    weights = gathered(trainer)
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        with explain_full_disk(run_dir):
            save_model(model, tokenizer, run_dir, jinja=template.jinja, stop_ids=stop_ids, state_dict=weights)


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Say in one line what a full disk raises while the result is written.

    Raises:
        TrainingError: there is no room; the checkpoints are as they were.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            free = shutil.disk_usage(folder).free / 1e6
            raise TrainingError(
                f"the disk that holds {folder} is full: {free:,.1f} MB are free, too few for the trained model; its "
                "checkpoints are intact: free space and go on with resume=true"
            ) from error
        raise
