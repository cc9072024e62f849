"""Log-probabilities of given tokens, a few positions at a time, so that [positions, vocabulary] never exists whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.training.loss import rows_at_once


class TokenScores(NamedTuple):
    """Of N positions; only `log_probs` carries gradient. Everything is float32 and in nats.

    Attributes:
        log_probs: log p(target), [N].
        entropy: of the next-token distribution, [N].
        mean_logits: the mean logit over the vocabulary, [N].
        is_top1: whether the target is the likeliest token, [N].
    """

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


def token_scores(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> TokenScores:
    """Log softmax(hidden · weightᵀ) at the targets, and what else a trainer reports of each position.

    The gradient of log p(t) by the hidden state is w_t − Σ_v p(v) w_v: it is made beside the log-probability where the
    head is frozen. A head that trains needs p itself, so there the logits are made again in the backward pass.

    Args:
        hidden_NH: last hidden states of the positions that predict.
        weight_VH: the head's weight, cast to the hidden states' dtype.
        targets_N: the token that follows each position.
    """
    weight_VH = weight_VH.to(hidden_NH.dtype)
    if not torch.is_grad_enabled():
        hidden_NH, weight_VH = hidden_NH.detach(), weight_VH.detach()
    return TokenScores(*_TokenScores.apply(hidden_NH, weight_VH, targets_N))  # type: ignore[no-untyped-call]  # torch's


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        beside = needs_hidden and not needs_weight
        grad_NH = torch.empty_like(hidden_NH) if beside else None
        scores = hidden_NH.new_empty((4, len(targets_N)), dtype=torch.float32)
        log_probs, entropy, mean_logits, is_top1 = scores
        rows = rows_at_once(weight_VH)
        for start in range(0, len(targets_N), rows):
            part = slice(start, start + rows)
            target = targets_N[part, None]
            logits = (hidden_NH[part] @ weight_VH.T).float()
            largest, chosen = logits.amax(-1, keepdim=True), logits.gather(1, target)
            mean_logits[part] = logits.mean(-1)
            is_top1[part] = (chosen == largest)[:, 0]
            normaliser = logits.logsumexp(-1, keepdim=True)
            log_probs[part] = (chosen - normaliser)[:, 0]
            probs = logits.sub(normaliser).exp_()
            # H = log Z − Σ p · logit
            entropy[part] = normaliser[:, 0] - torch.linalg.vecdot(probs, logits)
            if grad_NH is not None:
                grad_logits = probs.neg_().scatter_add_(1, target, torch.ones_like(chosen))
                torch.mm(grad_logits.to(hidden_NH.dtype), weight_VH, out=grad_NH[part])
        ctx.save_for_backward(*((grad_NH,) if beside else (hidden_NH, weight_VH, targets_N)))
        ctx.mark_non_differentiable(entropy, mean_logits, is_top1)
        return log_probs.clone(), entropy, mean_logits, is_top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if len(ctx.saved_tensors) == 1:
            (grad_NH,) = ctx.saved_tensors
            return grad_NH * grad_N[:, None].to(grad_NH.dtype), None, None
        hidden_NH, weight_VH, targets_N = ctx.saved_tensors
        needs_hidden, _, _ = ctx.needs_input_grad
        grad_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_VH = torch.zeros_like(weight_VH)
        rows = rows_at_once(weight_VH)
        for start in range(0, len(targets_N), rows):
            part = slice(start, start + rows)
            scale = grad_N[part, None].float()
            probs = (hidden_NH[part] @ weight_VH.T).float().softmax(-1)
            grad_logits = probs.mul_(-scale).scatter_add_(1, targets_N[part, None], scale).to(hidden_NH.dtype)
            if grad_NH is not None:
                torch.mm(grad_logits, weight_VH, out=grad_NH[part])
            grad_VH.addmm_(grad_logits.T, hidden_NH[part])
        return grad_NH, grad_VH, None
