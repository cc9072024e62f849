"""Weights spread over processes by FSDP or DeepSpeed, as accelerate's environment or its `config` says."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

_GATHER = "stage3_gather_16bit_weights_on_model_save"
_LAUNCHED_WITH = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def sharding_launched() -> str | None:
    """Name what `accelerate launch` has asked for; None for whole weights in every process."""
    asked = (name for variable, name in _LAUNCHED_WITH.items() if os.environ.get(variable, "").lower() in ("1", "true"))
    return next(asked, None)


def check_sharding() -> list[str]:
    """List what DeepSpeed would say at the end of a training only, or in a stack trace, one line each."""
    if sharding_launched() != "DeepSpeed":
        return []
    if importlib.util.find_spec("deepspeed") is None:
        return ["DeepSpeed was asked for and is not installed: pip install deepspeed"]
    gathers = os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false").lower() == "true"
    zero: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if file and Path(file).is_file():
        zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {})
    asked = zero.get(_GATHER, "auto")
    if zero.get("stage") != 3 or (gathers if asked == "auto" else asked):
        return []
    return [
        f"DeepSpeed: ZeRO stage 3 would train and then not give its weights back: set zero_optimization.{_GATHER} to "
        "true in its configuration (zero3_save_16bit_model in accelerate's)"
    ]


def is_sharded(trainer: Any) -> bool:
    """Tell whether a process may hold a part of the weights only, so that the model cannot be called by one alone."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def gathered(trainer: Any) -> dict[str, Tensor] | None:
    """Gather the whole weights on the main process; None where they are whole already. Every process must call this."""
    if not is_sharded(trainer):
        return None
    weights: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights
