"""A reference model that is named: what may be one, and how it is loaded beside the policy."""

from __future__ import annotations

import dataclasses
from typing import cast

from peft import PeftModel
from transformers import PreTrainedModel

from alignkit.choices import Init
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.models.load import check_model, load_merged, load_model, load_tokenizer, merge_problems
from alignkit.models.source import ModelSource


def reference_section(name: str, policy: ModelConfig) -> ModelConfig:
    """Return the section of the model that `reference.name` names: loaded as the policy is."""
    return dataclasses.replace(policy, name=name, revision=None, init=Init.pretrained, config={})


def reference_problems(name: str, policy: ModelConfig) -> list[str]:
    """List what is wrong with `reference.name`, one line each; no weights are read."""
    section, problems = reference_section(name, policy), []
    try:
        if not ModelSource.of(policy).is_adapter:
            problems += merge_problems(section, "reference.name")
        check_model(section)
        if load_tokenizer(section).get_vocab() != load_tokenizer(policy).get_vocab():
            problems.append(
                f"reference.name: {name} has another vocabulary than {policy.name}, so their log-probabilities cannot "
                "be compared"
            )
    except AlignkitError as error:
        problems += [line.replace("model.name", "reference.name") for line in error.problems]
    return problems


def load_reference(name: str, policy: ModelConfig, *, has_new_adapter: bool, seed: int) -> PreTrainedModel:
    """Load the reference in the arithmetic of the policy, so that one that is the policy gives what the policy gives.

    A policy that is an adapter computes beside its base, and so does its reference. Every other one has its adapter in
    its weights, where it is merged in float32; those train in float32 unless they are below a new adapter.

    Args:
        name: of the reference.
        policy: the section of the policy.
        has_new_adapter: the policy trains a new adapter on these weights.
        seed: of random weights.
    """
    section = reference_section(name, policy)
    tokenizer = load_tokenizer(section)
    if ModelSource.of(policy).is_adapter:
        loaded = load_model(section, tokenizer=tokenizer, seed=seed, trainable=False)
        reference = loaded.get_base_model() if isinstance(loaded, PeftModel) else loaded  # with the adapter's layers
    else:
        reference = load_merged(section, tokenizer=tokenizer, seed=seed, trainable=not has_new_adapter)
    return cast("PreTrainedModel", reference).requires_grad_(False)
