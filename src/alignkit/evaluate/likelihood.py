"""Log-probabilities of given tokens: one pass over rows, the head on the scored positions only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from alignkit.data.batches.batching import IGNORED, Collator
from alignkit.training.lm_head import hidden_states, is_plain_head, lm_head, positions_at_once


@dataclass(frozen=True)
class Row:
    """Tokens, and which of them are scored.

    Attributes:
        input_ids: the whole sequence.
        labels: the same ids where a token is scored, -100 elsewhere; the first token has nothing before it.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]

    @classmethod
    def answered(cls, prompt: Sequence[int], response: Sequence[int], num_masked: int = 0) -> Row:
        """A prompt, unscored, and a response of which every token after the first `num_masked` is scored."""
        return cls([*prompt, *response], [IGNORED] * (len(prompt) + num_masked) + list(response[num_masked:]))

    @property
    def num_scored(self) -> int:
        return sum(label != IGNORED for label in self.labels[1:])


def token_logprobs(model: PreTrainedModel, rows: Sequence[Row], *, pad_id: int, batch_size: int) -> list[Tensor]:
    """Compute the log-probability of every scored token given those before it, in nats, without sampling settings.

    Args:
        model: a causal language model; it is left in the mode it was in.
        rows: of any lengths; those of like length share a batch.
        pad_id: any valid id.
        batch_size: rows at once.

    Returns:
        For each row a tensor `[num_scored]` on the CPU: float32, or float64 where the model is.
    """
    scored: dict[int, Tensor] = {}
    for indices, states, (targets_N,) in _batches([model], rows, pad_id, batch_size):
        (positions,) = states
        parts = [
            positions(chunk).log_softmax(-1).gather(1, targets_N[chunk, None])[:, 0]
            for chunk in _chunks(targets_N, positions.num_tokens)
        ]
        _distribute(torch.cat(parts) if parts else targets_N.float(), indices, rows, scored)
    return [scored[index] for index in range(len(rows))]


def token_kls(
    policy: PreTrainedModel, reference: PreTrainedModel, rows: Sequence[Row], *, pad_id: int, batch_size: int
) -> list[Tensor]:
    """Compute KL(policy ‖ reference) = Σ_v π(v) ln(π(v) / ρ(v)) of the next token at each scored position, exactly.

    Summed over a response that the policy drew from its plain distribution, its mean is the KL divergence of the two
    distributions over responses (the chain rule), with less variance than ln π(y) − ln ρ(y).

    Args:
        policy: the model π; its tokens mean the same to `reference`.
        reference: the model ρ.
        rows: as in `token_logprobs`.
        pad_id: as in `token_logprobs`.
        batch_size: as in `token_logprobs`.

    Returns:
        For each row a tensor `[num_scored]` on the CPU, in nats: float32, or float64 where a model is.
    """
    scored: dict[int, Tensor] = {}
    for indices, states, (targets_N, _) in _batches([policy, reference], rows, pad_id, batch_size):
        ours, theirs = states
        parts = []
        for chunk in _chunks(targets_N, ours.num_tokens):
            logp, logq = (positions(chunk).log_softmax(-1) for positions in (ours, theirs))
            parts.append((logp.exp() * (logp - logq)).nansum(-1).clamp(min=0))  # 0 · (−∞ + ∞) is 0
        _distribute(torch.cat(parts) if parts else targets_N.float(), indices, rows, scored)
    return [scored[index] for index in range(len(rows))]


class _Positions:
    """Logits of the scored positions of a batch, made when they are asked for."""

    def __init__(self, states_NH: Tensor, weight_VH: Tensor | None) -> None:
        self.states_NH, self.weight_VH = states_NH, weight_VH
        self.num_tokens = states_NH.shape[-1] if weight_VH is None else len(weight_VH)

    def __call__(self, chunk: slice) -> Tensor:
        states = self.states_NH[chunk]
        logits = states if self.weight_VH is None else states @ self.weight_VH.T
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _batches(
    models: Sequence[PreTrainedModel], rows: Sequence[Row], pad_id: int, batch_size: int
) -> Iterator[tuple[list[int], list[_Positions], list[Tensor]]]:
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index].input_ids))
    modes = [model.training for model in models]
    for model in models:
        model.train(False)
    plain = [is_plain_head(model) for model in models]
    try:
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                indices = order[start : start + batch_size]
                encoded = [{"input_ids": rows[i].input_ids, "labels": rows[i].labels, "row_index": i} for i in indices]
                batch = Collator(pad_id)(encoded)
                found = [_scored(model, batch, own) for model, own in zip(models, plain, strict=True)]
                yield indices, [positions for positions, _ in found], [targets for _, targets in found]
    finally:
        for model, was_training in zip(models, modes, strict=True):
            model.train(was_training)


def _scored(model: PreTrainedModel, batch: dict[str, Tensor], plain_head: bool) -> tuple[_Positions, Tensor]:
    labels_BL = batch["labels"].to(model.device)[:, 1:]
    scored_BL = labels_BL != IGNORED
    inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
    if not plain_head:
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        return _Positions(logits[scored_BL], None), labels_BL[scored_BL]
    head = lm_head(model)
    with hidden_states(head) as caught:
        model(**inputs, use_cache=False)
    return _Positions(caught[0][:, :-1][scored_BL], head.weight), labels_BL[scored_BL]


def _chunks(targets_N: Tensor, num_tokens: int) -> Iterator[slice]:
    step = positions_at_once(num_tokens, targets_N.device)
    yield from (slice(start, start + step) for start in range(0, len(targets_N), step))


def _distribute(values_N: Tensor, indices: Sequence[int], rows: Sequence[Row], found: dict[int, Tensor]) -> None:
    counts = [rows[index].num_scored for index in indices]
    found |= dict(zip(indices, torch.split(values_N.cpu(), counts), strict=True))
