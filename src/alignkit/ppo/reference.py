"""The reference: the policy as it was at the start, or a named model; with weights of its own only where it must be."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from torch import nn

from alignkit.choices import Init
from alignkit.config import ModelConfig
from alignkit.models.adapters import FIRST, Adapters
from alignkit.models.load import read_adapter_config
from alignkit.models.lora import leaves_base
from alignkit.models.reference import load_reference, reference_section
from alignkit.models.source import ADAPTER_WEIGHTS, ModelSource
from alignkit.rewards.backbone import Backbone, trained_beside

REF = "ref"  # the adapter of the reference, frozen


@dataclass(frozen=True)
class Reference:
    """What the policy must stay near.

    Attributes:
        name: of the model; None for the policy as it was at the start.
        model: its own weights; None where it lives in the policy's model.
        adapter: that the policy's backbone computes with as the reference; None for none.
    """

    name: str | None
    model: nn.Module | None
    adapter: str | None

    def __str__(self) -> str:
        return self.name or "the policy as it was at the start"

    def held(self, *, has_adapters: bool) -> str:
        """Say what is in memory of policy and reference."""
        if self.model is not None:
            what = "a copy of the backbone with an adapter, the policy" if has_adapters else "the policy"
            if self.name is None:
                return "two copies of the model: the policy, and the reference it must stay near"
            return f"two models: {what}, and the reference {self.name}"
        if self.adapter is not None:
            return "one copy of the backbone: policy and reference are two adapters on it"
        return "one copy of the backbone: with its adapter it is the policy, without it the reference"


def hold_start(model: Any, adapters: Adapters | None, *, is_continued: bool) -> Reference:
    """Keep the start of a policy.

    Args:
        model: the policy before its first step.
        adapters: on it; None where every weight trains.
        is_continued: its adapter was trained before, and is trained further.
    """
    if adapters is None:
        return Reference(None, copy.deepcopy(model).requires_grad_(False), None)
    if not is_continued:
        return Reference(None, None, None)
    adapters.copy(REF, trains=False)
    return Reference(None, None, REF)


def hold_named(
    name: str, policy: ModelConfig, adapters: Adapters | None, *, is_continued: bool, seed: int
) -> Reference:
    """Hold a model as the reference: on the policy's backbone where it sits on the same, else with its own weights.

    Args:
        name: of the reference.
        policy: the section of the policy.
        adapters: on the policy; None where every weight trains.
        is_continued: the policy's adapter was trained before, and is trained further.
        seed: of random weights.
    """
    source = ModelSource.of(reference_section(name, policy))
    if adapters is None or not _shares(source, policy, adapters):
        has_new_adapter = adapters is not None and not is_continued
        return Reference(name, load_reference(name, policy, has_new_adapter=has_new_adapter, seed=seed), None)
    if not source.is_adapter:
        return Reference(name, None, None)
    assert source.folder is not None
    config = read_adapter_config(source.folder)
    adapters.add(REF, config, load_file(source.folder / ADAPTER_WEIGHTS), trains=False)
    return Reference(name, None, REF)


def _shares(source: ModelSource, policy: ModelConfig, adapters: Adapters) -> bool:
    """Whether a reference computes on the policy's backbone what it computes on its own."""
    backbone = Backbone(adapters, ModelSource.of(policy).base)
    if policy.init is Init.random or not leaves_base(adapters.model.peft_config[FIRST]):
        return False
    if not source.is_adapter:
        return backbone.is_base_of(source)
    folder = source.folder
    assert folder is not None
    return backbone.is_base_of(source) and leaves_base(read_adapter_config(folder)) and not trained_beside(folder)
