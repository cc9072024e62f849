"""What a run is made of beside its settings: the models that it starts from or is taught by."""

from __future__ import annotations

from typing import Any

from alignkit.config import ModelConfig
from alignkit.rewards.source import parse_rewards


def model_sections(job: Any) -> dict[str, ModelConfig]:
    """Return every model that a job takes, by the setting that names it."""
    sections = {"model.name": job.model}
    named = {
        "reference.name": job.reference.name if hasattr(job, "reference") else None,
        "value.start": job.value.start if hasattr(job, "value") else None,
    }
    for source in parse_rewards(job.reward) if hasattr(job, "reward") else ():
        named[source.setting_of(source.kind)] = source.model or source.classifier
    return sections | {setting: ModelConfig(name) for setting, name in named.items() if name is not None}
