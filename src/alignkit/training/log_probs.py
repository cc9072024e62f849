"""Log-probabilities of given tokens, a few positions at a time, so that [positions, vocabulary] never exists whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.training.lm_head import HeadGradient, rows_at_once


class TokenScores(NamedTuple):
    """Of N positions; only `log_probs` carries gradient. Everything is float32 and in nats.

    Attributes:
        log_probs: log p(target), [N].
        entropy: of the next-token distribution, [N].
        mean_logits: the mean over the vocabulary of the logits as the head makes them, [N].
        is_top1: whether the target is the likeliest token, [N].
    """

    log_probs: Tensor
    entropy: Tensor
    mean_logits: Tensor
    is_top1: Tensor


class Blocked(NamedTuple):
    """Tokens that could not be drawn.

    Attributes:
        positions_N: true where they could not.
        ids_E: the tokens.
    """

    positions_N: Tensor
    ids_E: Tensor


def token_scores(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float = 1.0,
    blocked: Blocked | None = None,
) -> TokenScores:
    """Compute log softmax(hidden · weightᵀ / temperature) at the targets, and what else trainers report of them.

    The gradient of log p(t) by the hidden state is (w_t − Σ_v p(v) w_v) / temperature: it is made beside the
    log-probability where the head is frozen. A head that trains needs p itself, so there the logits are made again in
    the backward pass.

    Args:
        hidden_NH: last hidden states of the positions that predict.
        weight_VH: the head's weight; it multiplies in the hidden states' dtype, its gradient is in its own.
        targets_N: the token that follows each position.
        temperature: of the distribution.
        blocked: tokens without probability at some of the positions; no target is one of them there.
    """
    if not torch.is_grad_enabled():
        hidden_NH, weight_VH = hidden_NH.detach(), weight_VH.detach()
    distribution = _Distribution(temperature, blocked)
    return TokenScores(*_TokenScoresFunction.apply(hidden_NH, weight_VH, targets_N, distribution))  # type: ignore[no-untyped-call]  # torch does not annotate it


class _Distribution(NamedTuple):
    temperature: float
    blocked: Blocked | None

    def logits(self, hidden_NH: Tensor, weight_VH: Tensor, part: slice) -> Tensor:
        """Compute the logits of some of the positions, in float32 and in memory of their own."""
        logits_NV = (hidden_NH[part] @ weight_VH.T).float()
        if self.temperature != 1:
            logits_NV.div_(self.temperature)
        if self.blocked is not None:
            rows_M1 = self.blocked.positions_N[part].nonzero()
            # finite, so that 0 · ln 0 stays 0 in the entropy
            logits_NV[rows_M1, self.blocked.ids_E] = torch.finfo(torch.float32).min / 2
        return logits_NV


class _TokenScoresFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, distribution: _Distribution
    ) -> tuple[Tensor, ...]:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        given_VH, weight_VH = weight_VH, weight_VH.to(hidden_NH.dtype)
        beside = needs_hidden and not needs_weight
        grad_NH = torch.empty_like(hidden_NH) if beside else None
        log_probs, entropy, is_top1 = (torch.empty(len(targets_N), device=hidden_NH.device) for _ in range(3))
        rows = rows_at_once(weight_VH)
        for start in range(0, len(targets_N), rows):
            part = slice(start, start + rows)
            target = targets_N[part, None]
            logits = distribution.logits(hidden_NH, weight_VH, part)
            logits.sub_(logits.amax(-1, keepdim=True))
            chosen, exps = logits.gather(1, target), logits.exp()
            total = exps.sum(-1, keepdim=True)
            normalizer = total.log()
            log_probs[part] = (chosen - normalizer)[:, 0]
            # H = log Z − Σ p · logit
            entropy[part] = normalizer[:, 0] - torch.linalg.vecdot(exps, logits) / total[:, 0]
            is_top1[part] = (chosen == 0)[:, 0]
            if grad_NH is not None:
                if hidden_NH.dtype == torch.float16:  # which ends at 65,504; the Z of many tokens alike does not
                    exps /= total
                    total = torch.ones_like(total)
                # Z times softmax − one-hot: dividing H numbers of a row is less than dividing V
                exps.scatter_add_(1, target, -total)
                torch.mm(exps.to(hidden_NH.dtype), weight_VH, out=grad_NH[part])
                grad_NH[part] /= -distribution.temperature * total
        mean_logits = hidden_NH.float() @ weight_VH.mean(0, dtype=torch.float32)  # the mean of products with each row
        ctx.distribution = distribution
        ctx.save_for_backward(*((grad_NH,) if beside else (hidden_NH, given_VH, targets_N)))
        ctx.mark_non_differentiable(entropy, mean_logits, is_top1)
        return log_probs, entropy, mean_logits, is_top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if len(ctx.saved_tensors) == 1:
            (grad_NH,) = ctx.saved_tensors
            return grad_NH * grad_N[:, None].to(grad_NH.dtype), None, None, None
        hidden_NH, weight_VH, targets_N = ctx.saved_tensors
        needs_hidden, *_ = ctx.needs_input_grad
        grad_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        head = HeadGradient(weight_VH, hidden_NH.dtype)
        dtype, weight_VH = weight_VH.dtype, weight_VH.to(hidden_NH.dtype)
        rows = rows_at_once(weight_VH)
        for start in range(0, len(targets_N), rows):
            part = slice(start, start + rows)
            scale = grad_N[part, None].float() / ctx.distribution.temperature
            probs = ctx.distribution.logits(hidden_NH, weight_VH, part).softmax(-1)
            grad_logits = probs.mul_(-scale).scatter_add_(1, targets_N[part, None], scale).to(hidden_NH.dtype)
            if grad_NH is not None:
                torch.mm(grad_logits, weight_VH, out=grad_NH[part])
            head.add(grad_logits, hidden_NH[part])
        return grad_NH, head.total().to(dtype), None, None
