"""The pairs that DPO trains on, and how `alignkit inspect` shows them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from alignkit.data.views.supervised import PairView
from alignkit.jobs import DpoJob
from alignkit.runs.log import run_log
from alignkit.stages.dpo.check import check_job
from alignkit.stages.opening import over_budget
from alignkit.stages.pairs import PreparedPairs, prepare_pairs, view_pairs


def prepare(job: DpoJob, run_dir: Path | None = None, *, now: datetime | None = None) -> PreparedPairs:
    """Read, render and encode the pairs, without loading weights (see `prepare_pairs`)."""
    return prepare_pairs(job, run_dir, num_examples=job.samples, now=now)


def view(job: DpoJob) -> PairView:
    """Prepare what `alignkit inspect dpo` shows."""
    with run_log():
        check_job(job)
        return view_pairs(job, "dpo", prepare(over_budget(job)))
