"""What is wrong with an SFT job before anything is read through or loaded."""

from __future__ import annotations

from alignkit.data.sets.section import check_data
from alignkit.data.sets.streaming import check_streaming
from alignkit.errors import ConfigError
from alignkit.jobs import SftJob
from alignkit.stages.samples import check_samples
from alignkit.stages.sections import check_adapter_stacking, check_sections


def check_job(job: SftJob) -> None:
    """Find everything that can be known before a file is read through or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = check_data(job.data) + check_samples(job.samples, job.sampling)
    problems += check_sections(job, "sft") + check_adapter_stacking(job)
    if job.data.streaming:
        keep_best = bool(job.early_stopping or job.train.get("load_best_model_at_end"))
        problems += check_streaming(job.data, job.train, keep_best=keep_best)
    if problems:
        raise ConfigError(*problems)
