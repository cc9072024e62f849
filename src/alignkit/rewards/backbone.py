"""Reward runs on the policy's own backbone: one more adapter and a score head, in place of one more model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from alignkit.choices import Init, Quantization
from alignkit.models.adapters import FIRST, Adapters
from alignkit.models.load import read_adapter_config
from alignkit.models.lora import leaves_base
from alignkit.models.reward import HEADS, adapter_and_head, head_beside
from alignkit.models.source import ADAPTER_WEIGHTS, ModelSource, weight_shapes


@dataclass(frozen=True)
class Backbone:
    """The frozen weights below the adapter of a policy.

    Attributes:
        adapters: on it.
        base: where it was loaded from.
    """

    adapters: Adapters
    base: ModelSource

    def is_base_of(self, run: ModelSource) -> bool:
        """Tell whether these are the weights that the adapter of a run was trained on."""
        config = self.adapters.model.get_base_model().config
        return run.sits_on(self.base, commit=getattr(config, "_commit_hash", None))


def why_not_shared(run: ModelSource, backbone: Backbone | None) -> str | None:
    """Say why a reward run cannot share the backbone of the policy; None where it can."""
    if backbone is None:
        return "every weight of the policy trains"
    if not run.is_adapter:
        return "it is no adapter"
    if backbone.base.config.quantization is not Quantization.none:
        return "the policy's backbone is quantized"
    if backbone.base.config.init is Init.random:
        return "the policy's backbone is random, and its own"
    if not backbone.is_base_of(run):
        return "its base is another"
    assert run.folder is not None
    if not all(map(leaves_base, (read_adapter_config(run.folder), backbone.adapters.model.peft_config[FIRST]))):
        return "an adapter took a part out of the base, or changed its biases"
    if more := trained_beside(run.folder):
        return f"it trains {more} too"
    return None


def add_reward_adapter(backbone: Backbone, run: Path, name: str, *, device: torch.device) -> PreTrainedModel:
    """Add the adapter of a reward run to the backbone of the policy.

    Args:
        backbone: for which `why_not_shared` is None.
        run: the folder.
        name: of the adapter on the backbone.
        device: where the backbone computes.

    Returns:
        What computes scores while the adapter is active.
    """
    config: Any = read_adapter_config(run)
    config.task_type, config.modules_to_save = backbone.adapters.model.active_peft_config.task_type, None
    weights, head = adapter_and_head(run)
    scored = head_beside(backbone.adapters.model.get_base_model(), head, device=device)
    backbone.adapters.add(name, config, weights, trains=False)
    return scored


def trained_beside(run: Path) -> str:
    """Say what an adapter trains beside linear layers and its score head; nothing where that is all."""
    config = read_adapter_config(run)
    if not isinstance(config, LoraConfig):
        return f"by {config.peft_type}, not by LoRA,"
    keys = [key for key in weight_shapes(run / ADAPTER_WEIGHTS) if not key.endswith(HEADS)]
    whole = sorted({key.rpartition(".")[0].rpartition(".")[2] for key in keys if ".lora_" not in key})
    embedded = ["its embeddings"] if any(".lora_embedding_" in key for key in keys) else []
    layers = ["copied layers"] if config.layer_replication else []
    return ", ".join(whole + embedded + layers)
