"""Models with the shapes and dtypes that training would have, and nothing in them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from alignkit.choices import Quantization
from alignkit.config import ModelConfig
from alignkit.models.load import read_adapter_config, weights_dtype
from alignkit.models.lora import build_lora
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource
from alignkit.planning.quantized import quantize


def unfilled_base(model: ModelConfig, *, trains: bool) -> Any:
    """Build the model that `load_model` would return, adapters left out, on the meta device.

    Args:
        model: the section.
        trains: these very weights will be trained.
    """
    built, dtype = skeleton(model), weights_dtype(model, trainable=trains)
    for weight in built.parameters():
        weight.data = weight.data.to(dtype)
    if model.quantization is not Quantization.none:
        quantize(built, model.quantization)
    return built


def with_adapter(built: Any, model: ModelConfig, lora: Mapping[str, Any], *, task_type: str = "CAUSAL_LM") -> Any:
    """Put on the adapter that training starts with: a new one, that of the model, or none."""
    source = ModelSource.of(model)
    if lora:
        config: Any = build_lora(dict(lora), built, task_type=task_type)
    elif source.is_adapter and task_type == "CAUSAL_LM":
        assert source.folder is not None
        config = read_adapter_config(source.folder)
        config.inference_mode = False
    else:
        return built
    with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(built, config)


def allocate(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Give every parameter and buffer of the meta device memory on another one; tied ones stay tied.

    Args:
        modules: changed in place; what they share stays shared.
        device: of the memory.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for part in [part for module in modules for part in module.modules()]:
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.device.type == "meta":
                    # the one that is left is kept too, lest another gets its id
                    made.setdefault(id(tensor), (tensor, _like(tensor, device)))
                    tensors[name] = made[id(tensor)][1]  # type: ignore[assignment]  # a dict of parameters gets parameters, one of buffers buffers


def _like(tensor: Tensor, device: torch.device) -> Tensor:
    empty = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
