"""An adapter merged into its base in memory, and how far the log-probabilities move by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from alignkit.choices import Dtype
from alignkit.config import ModelConfig
from alignkit.evaluate.likelihood import Row, token_logprobs
from alignkit.evaluate.served_model import ServedModel
from alignkit.models.skeleton import skeleton

# Above what rounding does: of the merged weights, to float32 or to 8 or 11 significant bits, and of the arithmetic.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.05}
# Float32 arithmetic hides what the rounding of float32 weights does: SmolLM2 135M is 3e-5 from itself in float64, where
# an adapter on it is 7e-6 from the merged model. Beside weights of fewer bits it is nothing.
ARITHMETIC = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}
_BATCH_SIZE = 8


def merge_adapter(model: ServedModel) -> PreTrainedModel:
    """Add a loaded adapter into the weights it sits on; `model` cannot be used afterwards."""
    adapted = model.weights
    assert isinstance(adapted, PeftModel)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def merged_dtype(model: ModelConfig) -> torch.dtype:
    """Return the dtype that a section asks for, or else the one its base is stored in."""
    if model.dtype is not Dtype.auto:
        return {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16, Dtype.float16: torch.float16}[model.dtype]
    stored: Any = skeleton(model).config.dtype
    return stored if stored in BOUNDS else torch.float32


def merge_difference(model: ServedModel, rows: Sequence[Row], arithmetic: torch.dtype) -> float:
    """Merge a loaded adapter; return the largest change of a log-probability, in nats.

    `model` cannot be used afterwards.
    """
    before = logprobs_in(arithmetic, model.weights, rows, pad_id=model.pad_id)
    return largest_difference(before, logprobs_in(arithmetic, merge_adapter(model), rows, pad_id=model.pad_id))


def logprobs_in(
    arithmetic: torch.dtype, model: PreTrainedModel, rows: Sequence[Row], *, pad_id: int
) -> list[torch.Tensor]:
    """Compute the log-probability of every scored token in a wider dtype than float32 weights, or in float32.

    The float32 weights come back as they were: the wider dtype holds each of them.
    """
    if model.device.type == "mps":  # which has no float64
        torch.nn.Module.to(model, "cpu")
    torch.nn.Module.to(model, arithmetic)
    with _experts_one_by_one(model):
        logprobs = token_logprobs(model, rows, pad_id=pad_id, batch_size=_BATCH_SIZE)
    torch.nn.Module.to(model, torch.float32)
    return logprobs


@contextmanager
def _experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Leave off the grouped product of a mixture's experts, torch's own, which takes no float64."""
    base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    given = base.get_experts_implementation()
    base.set_experts_implementation("eager")
    try:
        yield
    finally:
        base.set_experts_implementation(given)


def largest_difference(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """Return the largest absolute difference of two lists of tensors of the same shapes."""
    return float((torch.cat(list(before)) - torch.cat(list(after))).abs().max())
