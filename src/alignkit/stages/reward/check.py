"""What is wrong with a reward job before anything is read through or loaded."""

from __future__ import annotations

from alignkit.errors import ConfigError
from alignkit.jobs import RewardJob
from alignkit.models.load import merge_problems
from alignkit.stages.pairs import check_pairs


def check_job(job: RewardJob) -> None:
    """Find everything that can be known before a file is read through or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    if problems := check_pairs(job, "reward") + merge_problems(job.model):
        raise ConfigError(*problems)
