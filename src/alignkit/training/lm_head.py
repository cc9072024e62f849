"""The LM head on supervised positions only, a few of them at a time: next-token cross entropy, the loss of SFT.

Prompts and padding are most of a batch, and the head most of a small model's work. The gradient is made beside the
loss, chunk by chunk, so that [positions, vocabulary] never exists as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# 8 M float32 logits are 32 MB: glibc serves that from its heap again and again, and maps anything larger anew, page
# fault by page fault. 2000 positions of a 49 k vocabulary in bfloat16 on one core: 2.1 s, and 2.8 s unchunked.
_LOGITS_AT_ONCE = 8_000_000
# The head is used well by so many positions: of a smaller vocabulary more of them take memory and no less time.
_POSITIONS_AT_ONCE, _LOGITS_AT_LEAST = 163, 2_000_000
# An accelerator wants large products, and its memory is pooled: 256 MB, 441 positions of a 152 k vocabulary.
_LOGITS_AT_ONCE_ON_ACCELERATORS = 64 * 2**20
# 162 positions, 49 k × 576 weights, one core with bfloat16 of its own: the product takes 38 ms, its sum in float32 102.
_CHUNKS_AT_ONCE = 4


def positions_at_once(vocabulary: int, device: torch.device) -> int:
    """Return how many positions have all of their logits made at a time on a device."""
    if device.type != "cpu":
        return max(1, _LOGITS_AT_ONCE_ON_ACCELERATORS // vocabulary)
    return max(1, min(_LOGITS_AT_ONCE, max(_LOGITS_AT_LEAST, _POSITIONS_AT_ONCE * vocabulary)) // vocabulary)


def rows_at_once(weight_VH: Tensor) -> int:
    """Return how many positions the head is applied to at a time."""
    return positions_at_once(len(weight_VH), weight_VH.device)


class HeadGradient:
    """The sum of grad_logitsᵀ · hidden over chunks of positions, [V, H] in float32, whatever the dtype of the two.

    In bfloat16 a sum over many chunks would lose what is 256 times smaller than itself. To add a product takes longer
    there than to make it, on a CPU: a few chunks are multiplied at once.
    """

    def __init__(self, weight_VH: Tensor, dtype: torch.dtype) -> None:
        self._sum_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        self._at_once = _CHUNKS_AT_ONCE if weight_VH.device.type == "cpu" and dtype != torch.float32 else 1
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, grad_logits_NV: Tensor, hidden_NH: Tensor) -> None:
        """Add a chunk; neither tensor may change afterwards."""
        self._waiting.append((grad_logits_NV, hidden_NH))
        if len(self._waiting) == self._at_once:
            self._multiply()

    def total(self) -> Tensor:
        """Return the sum of all chunks, [V, H]."""
        if self._waiting:
            self._multiply()
        return self._sum_VH

    def _multiply(self) -> None:
        chunks, self._waiting = self._waiting, []
        grad_logits_NV, hidden_NH = (
            parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*chunks, strict=True)
        )
        if hidden_NH.dtype == torch.float32:
            self._sum_VH.addmm_(grad_logits_NV.T, hidden_NH)
        else:
            self._sum_VH += grad_logits_NV.T @ hidden_NH


def lm_head(model: Any) -> Any:
    """Return the output embeddings of a causal model, adapters or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_output_embeddings()


def complete_head(model: Any) -> None:
    """Give the head the bias that upstream reads of every head: none, where trained tokens are tied to it.

    PEFT's wrapper of such a head has the trained weight, and no name for the bias that it does not add.
    """
    head = lm_head(model)
    if isinstance(head, TrainableTokensWrapper):
        head.register_parameter("bias", None)


def is_plain_head(model: Any) -> bool:
    """Tell whether logits are hidden states times the head's weight and nothing else (Gemma caps, Granite scales them).

    Tried on the model itself: the head's output is replaced by a ramp, which must come out of the model as it went in.
    """
    head = lm_head(model)
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    ramp = torch.linspace(-100, 100, head.out_features, device=head.weight.device).to(head.weight.dtype)
    replaced = head.register_forward_hook(lambda module, args, output: ramp.expand_as(output))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.zeros((1, 1), dtype=torch.long, device=head.weight.device)
            return torch.equal(model(input_ids=ids, use_cache=False).logits.flatten(), ramp)
    finally:
        replaced.remove()
        model.train(was_training)


@contextmanager
def hidden_states(head: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what the model hands to its head, [B, L, H], and let the head itself work on one position only."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        dtype = torch.get_autocast_dtype(args[0].device.type)
        caught.append(args[0].to(dtype) if torch.is_autocast_enabled(args[0].device.type) else args[0])
        return (args[0][:1, :1],)

    handle = head.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def cross_entropy(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the cross entropy of softmax(hidden · weightᵀ) against the targets, in float32.

    Args:
        hidden_NH: last hidden states of the supervised positions.
        weight_VH: the head's weight; it multiplies in the hidden states' dtype, its gradient is in its own.
        targets_N: the token that follows each position.

    Returns:
        The sum over N of −log p(target), and how many targets are the likeliest token; both scalars.
    """
    if not torch.is_grad_enabled():
        hidden_NH, weight_VH = hidden_NH.detach(), weight_VH.detach()
    loss, num_correct = _CrossEntropy.apply(hidden_NH, weight_VH, targets_N)  # type: ignore[no-untyped-call]  # torch does not annotate it
    return loss, num_correct


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        grad_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        head = HeadGradient(weight_VH, hidden_NH.dtype) if needs_weight else None
        dtype, weight_VH = weight_VH.dtype, weight_VH.to(hidden_NH.dtype)
        loss = hidden_NH.new_zeros((), dtype=torch.float32)
        num_correct = targets_N.new_zeros(())
        rows = rows_at_once(weight_VH)
        for start in range(0, len(targets_N), rows):
            hidden, target = hidden_NH[start : start + rows], targets_N[start : start + rows, None]
            logits = (hidden @ weight_VH.T).float()
            largest = logits.amax(-1, keepdim=True)
            chosen = logits.gather(1, target)
            num_correct += (chosen == largest).sum()
            normalizer = logits.sub_(largest).exp_().sum(-1, keepdim=True)
            loss += (normalizer.log() + largest - chosen).sum()
            if grad_NH is None and head is None:
                continue
            # d loss / d logits = softmax − one-hot
            grad_logits = logits.div_(normalizer).scatter_add_(1, target, -torch.ones_like(chosen)).to(hidden.dtype)
            if grad_NH is not None:
                torch.mm(grad_logits, weight_VH, out=grad_NH[start : start + rows])
            if head is not None:
                head.add(grad_logits, hidden)
        ctx.save_for_backward(grad_NH, None if head is None else head.total().to(dtype))
        ctx.mark_non_differentiable(num_correct)
        return loss, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_NH, grad_VH = ctx.saved_tensors
        scaled = [None if grad is None else grad * grad_loss.to(grad.dtype) for grad in (grad_NH, grad_VH)]
        return scaled[0], scaled[1], None
