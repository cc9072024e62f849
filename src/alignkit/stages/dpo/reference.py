"""The policy that DPO starts from, as the loss compares with it."""

from __future__ import annotations

import copy
import dataclasses
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from alignkit.config import Init, ModelConfig
from alignkit.jobs import DpoJob
from alignkit.models.load import load_merged, load_model, load_tokenizer
from alignkit.models.source import ModelSource


def reference_section(job: DpoJob) -> ModelConfig:
    """Return the section of the model that `reference.name` names."""
    assert job.reference.name is not None
    return dataclasses.replace(job.model, name=job.reference.name, revision=None, init=Init.pretrained, config={})


def build_reference(job: DpoJob, model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel | None:
    """Load or copy the frozen reference; None where the policy itself can play it: by its adapters, or unchanged."""
    if job.reference.name is not None:
        return _named_reference(job)
    if job.lora or isinstance(model, PeftModel) or job.reference.keep:
        return None
    return copy.deepcopy(model).requires_grad_(False)


def _named_reference(job: DpoJob) -> PreTrainedModel:
    """Load the reference in the arithmetic of the policy, so that one that is the policy gives what the policy gives.

    A policy that is an adapter computes beside its base, and so does its reference. Every other one has its adapter in
    its weights, where it is merged in float32; those train in float32 unless they are below a new adapter.
    """
    section, policy = reference_section(job), ModelSource.of(job.model)
    tokenizer = load_tokenizer(section)
    if policy.is_adapter:
        loaded = load_model(section, tokenizer=tokenizer, seed=job.seed, trainable=False)
        reference = loaded.get_base_model() if isinstance(loaded, PeftModel) else loaded  # with the adapter's layers
    else:
        reference = load_merged(section, tokenizer=tokenizer, seed=job.seed, trainable=not job.lora)
    return cast("PreTrainedModel", reference).requires_grad_(False)


def describe_reference(job: DpoJob, model: PreTrainedModel | PeftModel) -> str:
    """Say in words what the reference is."""
    if job.reference.name is not None:
        return job.reference.name
    if isinstance(model, PeftModel):
        return "the policy with a frozen copy of the adapter it starts with"
    if job.lora:
        return "the policy with its adapter off"
    return "the policy, before its first step" if job.reference.keep else "a frozen copy of the policy"
