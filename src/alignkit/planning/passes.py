"""The passes of the stages, on batches of which it is known beforehand where they have loss.

Training finds these places in the batch, which fake tensors cannot. Else the same functions compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig

from alignkit.models.shrunk import shrunk_model
from alignkit.training.lm_head import cross_entropy, hidden_states, is_plain_head, lm_head
from alignkit.training.log_probs import token_scores

_PLACES, _TARGETS = "places", "targets"


def has_plain_head(config: PreTrainedConfig, *, trust_remote_code: bool) -> bool:
    """Tell whether logits are states times a weight and nothing else, by a tiny model of the same architecture."""
    return is_plain_head(shrunk_model(config, seed=0, trust_remote_code=trust_remote_code))


def with_places(batch: Mapping[str, Tensor], labels_BL: Tensor) -> dict[str, Tensor]:
    """Add to a batch where its labels are, counted over all its lines, and the labels there; -100 is none."""
    flat = labels_BL.flatten()
    places_N = (flat != -100).nonzero()[:, 0]
    return {**batch, _PLACES: places_N, _TARGETS: flat[places_N]}


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a model is called with."""
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: batch[name] for name in names if name in batch} | {"use_cache": False}


def without_idle(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out a mask that hides nothing and positions that start once: of those upstream makes no square mask."""
    if "attention_mask" in batch and batch["attention_mask"].ndim == 2 and bool((batch["attention_mask"] == 1).all()):
        batch = {name: tensor for name, tensor in batch.items() if name != "attention_mask"}
    if "position_ids" in batch and bool((batch["position_ids"].diff(dim=-1) == 1).all()):
        batch = {name: tensor for name, tensor in batch.items() if name != "position_ids"}
    return batch


def sft_loss(model: Any, batch: Mapping[str, Tensor], *, is_plain: bool) -> Tensor:
    """Compute the cross entropy of the places with loss, as the SFT trainer does."""
    if not is_plain:
        logits_BLV = model(**model_inputs(batch)).logits
        return functional.cross_entropy(logits_BLV.flatten(0, 1).float()[batch[_PLACES]], batch[_TARGETS])
    head = lm_head(model)
    with hidden_states(head) as caught:
        model(**model_inputs(batch))
    loss, _ = cross_entropy(caught[0].flatten(0, 1)[batch[_PLACES]], head.weight, batch[_TARGETS])
    return loss / len(batch[_PLACES])


def log_probs(
    model: Any, batch: Mapping[str, Tensor], *, is_plain: bool, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities of the labels, [N], and the states before them, [N, H], as DPO and PPO do."""
    head = lm_head(model)
    if is_plain:
        with hidden_states(head) as caught:
            model(**model_inputs(batch))
        states_NH = caught[0].flatten(0, 1)[batch[_PLACES]]
        return token_scores(states_NH, head.weight, batch[_TARGETS], temperature=temperature).log_probs, states_NH
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        logits_BLV = model(**model_inputs(batch)).logits
    finally:
        handle.remove()
    logits_NV = logits_BLV.flatten(0, 1)[batch[_PLACES]].float() / temperature
    found_N = logits_NV.gather(-1, batch[_TARGETS][:, None])[:, 0] - logits_NV.logsumexp(-1)
    return found_N, seen[0].flatten(0, 1)[batch[_PLACES]]


def longest(lengths: list[int], batch_size: int) -> list[int]:
    """Return the indices of the longest rows, over again where there are too few."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])[:batch_size]
    return [order[i % len(order)] for i in range(batch_size)]
