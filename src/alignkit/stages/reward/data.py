"""The pairs that a reward model trains on, and how `alignkit inspect` shows them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from alignkit.data.views.supervised import PairView
from alignkit.jobs import RewardJob
from alignkit.runs.log import run_log
from alignkit.stages.opening import over_budget
from alignkit.stages.pairs import PreparedPairs, prepare_pairs, view_pairs
from alignkit.stages.reward.check import check_job


def prepare(job: RewardJob, run_dir: Path | None = None, *, now: datetime | None = None) -> PreparedPairs:
    """Read, render and encode the pairs, without loading weights (see `prepare_pairs`)."""
    return prepare_pairs(job, run_dir, is_reward=True, use_margin=job.use_margin, now=now)


def view(job: RewardJob) -> PairView:
    """Prepare what `alignkit inspect reward` shows."""
    with run_log():
        check_job(job)
        return view_pairs(job, "reward", prepare(over_budget(job)))
