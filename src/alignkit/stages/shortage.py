"""What a job can have less of where memory runs out: settings that it has, and that are not at their least."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.choices import EngineName
from alignkit.jobs import PolicyJob, PpoJob, StageJob
from alignkit.models.source import ModelSource


def what_to_lower(job: StageJob) -> str:
    """Say which settings to lower and which to take, in words that follow `out of memory:`."""
    *lower, last = _to_lower(job)
    take = list(_to_take(job))
    lowered = f"lower {', '.join(lower)} or {last}" if lower else f"lower {last}"
    return lowered + (f", or take {' or '.join(take)}" if take else "")


def _to_lower(job: StageJob) -> Iterator[str]:
    if int(job.train.get("per_device_train_batch_size") or 8) > 1:
        name = "train.per_device_train_batch_size"
        yield name if isinstance(job, PpoJob) else f"{name} (and raise train.gradient_accumulation_steps as much)"
    if job.train.get("dataloader_num_workers"):
        yield "train.dataloader_num_workers"
    if not isinstance(job, PpoJob):
        yield "data.max_length"
    elif job.engine.name is EngineName.local:
        yield "ppo.generation_batch_size"
    if isinstance(job, PpoJob) or (isinstance(job, PolicyJob) and job.samples):
        yield "sampling.max_new_tokens"


def _to_take(job: StageJob) -> Iterator[str]:
    if not job.train.get("gradient_checkpointing"):
        yield "train.gradient_checkpointing=true"
    if not job.lora and not ModelSource.of(job.model).is_adapter:
        yield "lora=default"
