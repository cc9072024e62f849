"""What is wrong with a DPO job before anything is read through or loaded."""

from __future__ import annotations

from alignkit.errors import ConfigError
from alignkit.jobs import DpoJob
from alignkit.models.reference import reference_problems
from alignkit.stages.pairs import check_pairs
from alignkit.stages.samples import check_samples
from alignkit.stages.sections import check_adapter_stacking, check_base_stays
from alignkit.training.dpo import check_losses


def check_job(job: DpoJob) -> None:
    """Find everything that can be known before a file is read through or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = (
        check_pairs(job, "dpo")
        + check_adapter_stacking(job)
        + check_losses(job.train)
        + check_samples(job.samples, job.sampling)
    )
    if "margin" in job.data.columns:
        problems.append("data.columns.margin has no effect: DPO's losses take no margin, alignkit reward does")
    if job.reference.name is None:
        problems += check_base_stays(job)
    else:
        problems += reference_problems(job.reference.name, job.model)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
