"""The loss that keeps all experts of a mixture in use (Fedus et al. 2021, eq. 4), which TRL adds to SFT's and DPO's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from alignkit.errors import ModelError

_COEFFICIENT = "router_aux_loss_coef"
_COUNTS = ("num_local_experts", "n_routed_experts")  # what configurations call `num_experts`, by which TRL looks for it


def adds_router_loss(config: PreTrainedConfig, train: Mapping[str, Any]) -> bool:
    """Tell whether TRL adds a router's loss: the architecture has one, and its coefficient is not 0."""
    text = config.get_text_config()
    chosen = train.get(_COEFFICIENT)
    coefficient = getattr(text, _COEFFICIENT, 0.0) if chosen is None else chosen
    return hasattr(text, "output_router_logits") and coefficient != 0


def prepare_router_loss(model: Any, train: Mapping[str, Any]) -> None:
    """Let TRL find what a router's loss is made of, where it adds one.

    Raises:
        ModelError: this model does not give it.
    """
    text = model.config.get_text_config()
    if train.get(_COEFFICIENT) and not hasattr(text, "output_router_logits"):
        raise ModelError(f"train.{_COEFFICIENT}: a {text.model_type} has no router of experts; leave it out")
    if not adds_router_loss(text, train):
        return
    name = next((name for name in _COUNTS if hasattr(text, name)), None)
    if not hasattr(text, "num_experts") and name is not None:
        # on the class, as upstream does it for Mixtral: the saved configuration stays as it is
        type(text).attribute_map = {**type(text).attribute_map, "num_experts": name}
    known = hasattr(text, "num_experts") and hasattr(text, "num_experts_per_tok")
    if not known or not _gives_router_logits(model):
        raise ModelError(
            f"train.{_COEFFICIENT}: this {text.model_type} model does not tell what the loss of its router is made of; "
            f"train.{_COEFFICIENT}=0 trains without that loss"
        )


def _gives_router_logits(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = base.base_model(input_ids=ids, use_cache=False, output_router_logits=True)
    finally:
        model.train(was_training)
    return bool(getattr(output, "router_logits", None))
