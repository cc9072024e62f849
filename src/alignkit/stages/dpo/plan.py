"""What memory and how many steps DPO takes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from alignkit.jobs import DpoJob
from alignkit.models.reference import reference_section
from alignkit.models.skeleton import architecture_file, skeleton
from alignkit.models.source import ModelSource
from alignkit.planning.passes import has_plain_head, log_probs
from alignkit.planning.rehearsal import Batch, Models, Rehearsal
from alignkit.planning.unfilled import unfilled_base, with_adapter
from alignkit.stages.dpo.check import check_job
from alignkit.stages.dpo.data import prepare
from alignkit.stages.pair_plan import longest_pairs, steps_of_pairs
from alignkit.stages.planned import built_arguments
from alignkit.stages.sections import build_arguments
from alignkit.training.dpo import REFERENCE_ADAPTER
from alignkit.training.lm_head import lm_head


def rehearsal(job: DpoJob, *, processes: int) -> Rehearsal:
    """Read the pairs, and say how a step of training is taken."""
    check_job(job)
    prepared = prepare(job)
    config = skeleton(job.model).config
    ours = {"max_length": None, "precompute_ref_log_probs": job.reference.keep}
    build = partial(build_arguments, job, "dpo", record={"train": job.train}, held_out=bool(prepared.data.evals))
    args = built_arguments(partial(build, **ours))
    is_plain = has_plain_head(config, trust_remote_code=job.model.trust_remote_code)

    def loss(models: Models, batch: Batch) -> Tensor:
        policy, _ = log_probs(models.trained, batch, is_plain=is_plain)
        if not job.reference.keep:
            with torch.no_grad():
                reference = _reference_log_probs(models, batch, is_plain=is_plain)
            policy = policy - reference
        return policy.mean()

    return Rehearsal(
        stage="dpo",
        args=args,
        architecture=architecture_file(job.model),
        model_type=config.model_type,
        build=partial(_models, job),
        batch=lambda size: longest_pairs(job, prepared, size, attention=config._attn_implementation),
        loss=loss,
        facts=steps_of_pairs(args, prepared, processes=processes),
    )


def _models(job: DpoJob) -> Models:
    """The policy, and a reference with weights of its own where the policy cannot play it."""
    is_adapter = ModelSource.of(job.model).is_adapter
    trains = not (job.lora or is_adapter)
    model = with_adapter(unfilled_base(job.model, trains=trains), job.model, job.lora)
    reference: Any = None
    if job.reference.name is not None:
        section = reference_section(job.reference.name, job.model)
        reference = unfilled_base(section, trains=trains).requires_grad_(False)
    elif is_adapter and not job.lora:
        model.add_adapter(REFERENCE_ADAPTER, model.peft_config["default"])
        model.set_requires_grad(REFERENCE_ADAPTER, False)
    elif trains and not job.reference.keep:
        reference = unfilled_base(job.model, trains=True).requires_grad_(False)
    return Models(model, lm_head(model), reference=reference)


def _reference_log_probs(models: Models, batch: Batch, *, is_plain: bool) -> Tensor:
    model: Any = models.reference if models.reference is not None else models.trained
    off = model.disable_adapter() if isinstance(model, PeftModel) and models.reference is None else nullcontext()
    with off:
        return log_probs(model, batch, is_plain=is_plain)[0]
