"""The policy that DPO starts from, as the loss compares with it."""

from __future__ import annotations

import copy

from peft import PeftModel
from transformers import PreTrainedModel

from alignkit.jobs import DpoJob
from alignkit.models.reference import load_reference


def build_reference(job: DpoJob, model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel | None:
    """Load or copy the frozen reference; None where the policy itself can play it: by its adapters, or unchanged."""
    if job.reference.name is not None:
        return load_reference(job.reference.name, job.model, has_new_adapter=bool(job.lora), seed=job.seed)
    if job.lora or isinstance(model, PeftModel) or job.reference.keep:
        return None
    return copy.deepcopy(model).requires_grad_(False)


def describe_reference(job: DpoJob, model: PreTrainedModel | PeftModel) -> str:
    """Say in words what the reference is."""
    if job.reference.name is not None:
        return job.reference.name
    if isinstance(model, PeftModel):
        return "the policy with a frozen copy of the adapter it starts with"
    if job.lora:
        return "the policy with its adapter off"
    return "the policy, before its first step" if job.reference.keep else "a frozen copy of the policy"
