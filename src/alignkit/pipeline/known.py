"""What stands for a run that is not there yet: the model it will start from, in the template it will be trained with.

A trained model has the architecture and the tokenizer of the one it started from, so that rows, templates, LoRA targets
and lengths can be checked before the first step has run.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from alignkit.models.source import ModelSource
from alignkit.pipeline.composed import Composed
from alignkit.pipeline.file import references

_ANY_REWARD = {"function": "alignkit.demo.rewards:count_a"}  # the kind of reward has no say in what is checked with it
_OF_THE_BASE = ("init_lora_weights", "bias", "lora_dropout")


def standing_in(composed: Composed, steps: Mapping[str, Composed], missing: Collection[str]) -> Any:
    """Return the job of a step with what is known of each run that is not there yet in its place.

    Args:
        composed: the step.
        steps: the steps before it.
        missing: those of them whose runs are not there yet, or will be others.
    """
    job = copy.deepcopy(composed.job)
    if parent := missing_model(composed, missing):
        base = standing_in(steps[parent], steps, missing)
        own = {"dtype": job.model.dtype, "quantization": job.model.quantization}
        job.model = replace(base.model, attn_implementation=job.model.attn_implementation, **own)
        if job.template.name == "native" and not job.template.file:
            job.template = replace(base.template, kwargs={**base.template.kwargs, **job.template.kwargs})
        if getattr(job, "lora", None) == {} and steps[parent].step.is_stage and is_adapter(steps[parent], steps):
            job.lora = {key: value for key, value in base.lora.items() if key not in _OF_THE_BASE}
    if hasattr(job, "reference") and _is_missing(job.reference.name, composed, "reference", missing):
        job.reference.name = None
        job.lora = {key: value for key, value in job.lora.items() if key not in _OF_THE_BASE}
    if hasattr(job, "value") and _is_missing(job.value.start, composed, "value", missing):
        job.value.start = None
    if hasattr(job, "reward"):
        given = zip(composed.record["reward"], job.reward, strict=True)
        there = [reward for record, reward in given if not set(references(record)) & set(missing)]
        job.reward = there or ([_ANY_REWARD] if job.reward else [])
    return job


def missing_model(composed: Composed, missing: Collection[str]) -> str | None:
    """Return the step whose run `model.name` is, if that run is not there yet."""
    return next((name for name in references(composed.record["model"]["name"]) if name in missing), None)


def _is_missing(name: str | None, composed: Composed, section: str, missing: Collection[str]) -> bool:
    return name is not None and bool(set(references(composed.record[section])) & set(missing))


def is_adapter(composed: Composed, steps: Mapping[str, Composed]) -> bool:
    """Tell whether a step leaves an adapter, and not full weights."""
    if not composed.step.is_stage:
        return False
    if composed.job.lora:
        return True
    parents = [name for name in references(composed.record["model"]["name"]) if name in steps]
    return any(is_adapter(steps[name], steps) for name in parents) or ModelSource.of(composed.job.model).is_adapter
