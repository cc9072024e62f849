"""What the plans of the four stages have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.choices import Dtype
from alignkit.jobs import StageJob


def for_device(job: StageJob, *, gpu: bool) -> StageJob:
    """Return the job as it would compute on a GPU of today, which has bfloat16; without `gpu` as it does here."""
    if not gpu:
        return job
    lets_choose = job.model.dtype is Dtype.auto and not job.train.get("fp16")
    train = {"bf16": True, **job.train} if lets_choose else job.train
    # weights that do not train are bfloat16 there, and those that do float32
    dtype = Dtype.bfloat16 if lets_choose and job.lora else job.model.dtype
    return replace(job, train=train, model=replace(job.model, dtype=dtype))


def built_arguments(build: Callable[[Path], Any]) -> Any:
    """Build upstream's arguments for a run that leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="alignkit-") as folder:
        return build(Path(folder))
