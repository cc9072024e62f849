"""What is wrong with the value function that a PPO job asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from alignkit.choices import Quantization, ValueModel
from alignkit.config import ValueConfig
from alignkit.errors import as_yaml
from alignkit.jobs import PpoJob
from alignkit.models.source import ModelSource

_RECOMPUTING = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")


def check_value(job: PpoJob) -> list[str]:
    """List what is wrong with the section `value` beside the others, one line each."""
    value, problems = job.value, []
    if value.model is not ValueModel.shared and value.detach:
        problems.append(
            f"value.detach has no effect with value.model={value.model}: its loss never trains the policy's own layers"
        )
    if value.model is ValueModel.adapter and not (job.lora or ModelSource.of(job.model).is_adapter):
        problems.append(
            "value.model=adapter needs a policy that is one too: lora=ppo puts LoRA on it, value.model=own trains a "
            "backbone for the values"
        )
    if value.model is ValueModel.own and value.start is None and job.model.quantization is not Quantization.none:
        problems.append(
            f"value.model=own trains a copy of the model, which model.quantization={job.model.quantization} rules out: "
            "take value.model=adapter"
        )
    recomputing = [how for key in _RECOMPUTING if isinstance(how := job.train.get(key), Mapping)]
    if value.model is ValueModel.adapter and any(how.get("use_reentrant") for how in recomputing):
        problems.append("use_reentrant=true cannot tell adapters apart, and value.model=adapter has two: leave it out")
    if job.ppo.vf_coef == 0:
        defaults = ValueConfig(start=value.start)
        problems += [
            f"value.{item.name}={as_yaml(given)} has no effect with ppo.vf_coef=0, which trains no values"
            for item in fields(ValueConfig)
            if (given := getattr(value, item.name)) != getattr(defaults, item.name)
        ]
    return problems
