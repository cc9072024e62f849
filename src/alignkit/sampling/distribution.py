"""The distribution that the sampling settings make of a model's logits: pure functions on tensors `[..., V]`.

Each filter returns logits of the same shape with the tokens it takes out at minus infinity; the softmax of the result
is the renormalized distribution. They agree with the logits processors of transformers' `generate`, in its order:
repetition penalty, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignkit.config import SamplingConfig
from alignkit.sampling.settings import draws


def distribution(logits: Tensor, sampling: SamplingConfig, previous_ids: Tensor | None = None) -> Tensor:
    """Compute the probabilities from which the next token is drawn.

    Args:
        logits: `[..., V]`, one row per next token; taken to float32.
        sampling: the settings; without a draw (see `draws`) all probability is on the likeliest token, the first of
            ties.
        previous_ids: `[..., S]`, the tokens before, prompt included, -1 where there is none (padding); only a
            repetition penalty asks for them.

    Returns:
        `[..., V]` probabilities that sum to 1.
    """
    logits = filter_logits(logits, sampling, previous_ids)
    if draws(sampling):
        return logits.softmax(-1)
    return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)


def filter_logits(logits: Tensor, sampling: SamplingConfig, previous_ids: Tensor | None = None) -> Tensor:
    """Compute the logits of `distribution`, before it makes probabilities of them or takes the largest."""
    logits = logits.float()
    if sampling.repetition_penalty is not None:
        assert previous_ids is not None, "a repetition penalty needs the tokens before"
        logits = apply_repetition_penalty(logits, previous_ids, sampling.repetition_penalty)
    if not draws(sampling):
        return logits
    if sampling.temperature is not None:
        logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Sharpen or flatten: the distribution becomes softmax(logits / t) (Ackley, Hinton & Sejnowski 1985).

    The order of the tokens stays. t = 1 changes nothing; t → ∞ is uniform; t → 0 puts everything on the likeliest
    token, shared evenly between ties. The largest logit is moved to 0 first, so that no temperature, however small,
    overflows.

    Args:
        logits: `[..., V]`.
        temperature: at least 0, which stands for its limit.
    """
    smallest = torch.finfo(logits.dtype).tiny
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, smallest)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens (Fan, Lewis & Dauphin 2018).

    Exactly min(k, V) are left, unless tokens tie with the k-th: those are kept as well, since nothing tells them apart.
    k = 1 is greedy; k ≥ V changes nothing.

    Args:
        logits: `[..., V]`.
        k: at least 1.
    """
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the nucleus: the fewest likeliest tokens whose probability reaches p (Holtzman et al. 2020).

    At least one is left. p → 0 is greedy; p = 1 changes nothing. Of tokens that tie at the border some may stay and
    some go.

    Args:
        logits: `[..., V]`.
        p: above 0, at most 1.
    """
    ascending, order = logits.sort(dim=-1)
    # Summed from the unlikely end: the small numbers meet before rounding to a large sum can swallow them.
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - p
    outside[..., -1] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter_(-1, order, outside), -torch.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens at least `min_p` times as likely as the likeliest one (Nguyen et al. 2024).

    0 changes nothing; 1 leaves the likeliest token and its ties.

    Args:
        logits: `[..., V]`.
        min_p: from 0 to 1.
    """
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < min_p * probabilities.amax(-1, keepdim=True), -torch.inf)


def apply_repetition_penalty(logits: Tensor, previous_ids: Tensor, penalty: float) -> Tensor:
    """Make tokens that came before less likely (Keskar et al. 2019, §4.1).

    Their logits are divided by the penalty where positive and, as transformers does it, multiplied where negative.
    1 changes nothing; below 1 repetition is favored. A token counts once however often it came.

    Args:
        logits: `[..., V]`.
        previous_ids: `[..., S]` token ids, -1 where there is none.
        penalty: above 0.
    """
    num_tokens = logits.shape[-1]
    # One column more than the vocabulary catches -1; scatter has no way to leave an entry out.
    seen = torch.zeros(*logits.shape[:-1], num_tokens + 1, dtype=torch.bool, device=logits.device)
    seen.scatter_(-1, previous_ids.where(previous_ids >= 0, num_tokens), True)
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen[..., :-1], penalized, logits)


def entropy(probabilities: Tensor) -> Tensor:
    """Compute the Shannon entropy −Σ p ln p in nats, `[..., V]` → `[...]`: 0 for a certain token, ln V for uniform."""
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)
