"""Weights spread over processes by FSDP or DeepSpeed, as accelerate's environment or its `config` says."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.choices import Quantization

_GATHER = "stage3_gather_16bit_weights_on_model_save"
_LAUNCHED_WITH = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def sharding_asked(train: Mapping[str, Any]) -> str | None:
    """Name what is to spread the weights, as `accelerate launch` or `train` says; None for whole ones everywhere."""
    asked = (name for variable, name in _LAUNCHED_WITH.items() if os.environ.get(variable, "").lower() in ("1", "true"))
    return next(asked, "FSDP" if train.get("fsdp") else None)


def fsdp_settings(train: Mapping[str, Any]) -> dict[str, str]:
    """Return what is set of FSDP, by accelerate's names without `fsdp_`, in lower case.

    Args:
        train: the section, whose `fsdp` goes before what `accelerate launch` says.
    """
    config = train.get("fsdp_config") or {}
    if isinstance(config, str):
        config = json.loads(Path(config).read_text(encoding="utf-8")) if Path(config).is_file() else {}
    if train.get("fsdp"):
        named, default = {str(name).removeprefix("fsdp_"): value for name, value in config.items()}, "2"
    else:
        named, default = (
            {name[5:].lower(): value for name, value in os.environ.items() if name.startswith("FSDP_")},
            "1",
        )
    return {"version": default} | {name: str(value).lower() for name, value in named.items()}


def check_sharding(train: Mapping[str, Any], quantization: Quantization) -> list[str]:
    """List what upstream would pass over in silence, say at the end of a training only, or in a stack trace.

    Args:
        train: the section.
        quantization: of the model.

    Returns:
        One line each.
    """
    match sharding_asked(train):
        case "FSDP":
            return _fsdp_problems(train, quantization)
        case "DeepSpeed":
            return _deepspeed_problems()
    return []


def _fsdp_problems(train: Mapping[str, Any], quantization: Quantization) -> list[str]:
    problems = []
    if not has_gpu(train):
        problems.append("FSDP: on a CPU no weights would be sharded: launch without it, or where there are GPUs")
    elif "LOCAL_RANK" not in os.environ:
        problems.append("FSDP: one process shards nothing: start several, with torchrun or accelerate launch")
    if fsdp_settings(train)["version"] != "2":
        problems.append(
            "FSDP version 1 is not supported: take fsdp_version: 2, in accelerate's configuration or launch"
        )
    if quantization is not Quantization.none:
        problems.append(
            f"model.quantization={quantization}: FSDP would keep the quantized weights whole in every process: leave "
            "one of the two out"
        )
    return problems


def has_gpu(train: Mapping[str, Any]) -> bool:
    """Tell whether processes compute on GPUs or the like: upstream looks at FSDP's settings there alone."""
    return torch.accelerator.is_available() and not train.get("use_cpu")


def _deepspeed_problems() -> list[str]:
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
