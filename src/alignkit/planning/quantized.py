"""Linear layers with the shapes that bitsandbytes keeps of 4 and 8 bits; its own cannot be built without memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from alignkit.choices import Quantization

_BLOCK, _NESTED_BLOCK = 64, 256  # weights that share a scale; scales that share one of theirs
_CODE, _NESTED_CODE = 16, 256  # values that 4 and 8 bits stand for


class QuantizedLinear(nn.Linear):
    """Stands for `bitsandbytes.nn.Linear4bit` and `Linear8bitLt`: their memory, at rest and in both passes.

    Args:
        in_features: of the layer.
        out_features: of the layer.
        bias: of the layer, which stays as it is; None without one.
        kind: 4 bits (NF4 with double quantization) or 8.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: nn.Parameter | None, kind: Quantization) -> None:
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.kind = kind
        self.register_parameter("bias", bias)
        packed, *scales = _shapes(in_features, out_features, kind)
        self.weight = nn.Parameter(packed, requires_grad=False)
        for number, scale in enumerate(scales):
            self.register_buffer(f"scale{number}", scale)

    def forward(self, x: Tensor) -> Tensor:
        computed = x.to(torch.bfloat16) if self.kind is Quantization.nf4 else x
        result: Tensor = _Product.apply(computed, self.weight, self)  # type: ignore[no-untyped-call]  # torch does not annotate it
        result = result if self.bias is None else result + self.bias.to(result.dtype)
        return result.to(x.dtype)


class _Product(torch.autograd.Function):
    """A product with weights that are unpacked for it, forward and backward; 8 bits keep their input, 4 do not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.kept = layer, x if layer.kind is Quantization.int8 else None
        return functional.linear(x, _unpacked(layer, x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ _unpacked(ctx.layer, grad), None, None


def _unpacked(layer: QuantizedLinear, like: Tensor) -> Tensor:
    return torch.empty((layer.out_features, layer.in_features), dtype=like.dtype, device=like.device)


def _shapes(in_features: int, out_features: int, kind: Quantization) -> list[Tensor]:
    """The weights as bitsandbytes packs them, and what it keeps beside them: functional.py, `QuantState`."""
    num = in_features * out_features
    if kind is Quantization.int8:
        return [_meta(torch.int8, out_features, in_features), _meta(torch.float32, out_features)]
    blocks = math.ceil(num / _BLOCK)
    return [
        _meta(torch.uint8, (num + 1) // 2, 1),
        _meta(torch.uint8, blocks),
        _meta(torch.float32, math.ceil(blocks / _NESTED_BLOCK)),
        _meta(torch.float32, _CODE),
        _meta(torch.float32, _NESTED_CODE),
        _meta(torch.float32),
    ]


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def quantize(model: PreTrainedModel, kind: Quantization) -> None:
    """Put quantized layers in place of those that transformers would quantize: all but the head and what it is tied to.

    Args:
        model: on the meta device, changed in place.
        kind: of 4 or 8 bits.
    """
    kept = get_keys_to_not_convert(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)) or any(f"{name}.".startswith(f"{key}.") for key in kept):
            continue
        parent, _, own = name.rpartition(".")
        rows, columns = module.weight.shape
        inputs, outputs = (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
        layer = QuantizedLinear(inputs, outputs, bias=module.bias, kind=kind)
        setattr(model.get_submodule(parent), own, layer)
