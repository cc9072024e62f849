"""What is wrong with a DPO job before anything is read through or loaded."""

from __future__ import annotations

from alignkit.errors import AlignkitError, ConfigError
from alignkit.jobs import DpoJob
from alignkit.models.load import check_model, load_tokenizer, merge_problems
from alignkit.models.source import ModelSource
from alignkit.stages.dpo.reference import reference_section
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
        reference = reference_section(job)
        try:
            if not ModelSource.of(job.model).is_adapter:
                problems += merge_problems(reference, "reference.name")
            check_model(reference)
            if load_tokenizer(reference).get_vocab() != load_tokenizer(job.model).get_vocab():
                problems.append(
                    f"reference.name: {job.reference.name} has another vocabulary than {job.model.name}, so their "
                    "log-probabilities cannot be compared"
                )
        except AlignkitError as error:
            problems += [line.replace("model.name", "reference.name") for line in error.problems]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
