"""LongRoPE (Ding et al. 2024, arXiv:2402.13753; Phi-3): each row of a batch encoded by its own length.

Such a model has two sets of frequencies: one for rows up to the length it was first trained on, another for longer
ones. Upstream takes the set of the longest row, padding counted, for the whole batch, so that what a short row comes to
would depend on the rows beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Model = TypeVar("Model")


def turns_at(config: Any) -> int | None:
    """Return the length of a row past which LongRoPE encodes all positions otherwise; None without it."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one for each kind of layer, in some
    named = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(filter(None, named), default=None)


def encode_each_row_alone(model: Model) -> Model:
    """Let a model with LongRoPE encode each row of a padded batch as it would alone; others are left as they are.

    Args:
        model: of transformers, without an adapter yet.
    """
    loaded: Any = model
    if (at := turns_at(loaded.config)) is None:
        return model
    # the backbone: an adapter calls what is above it without hooks
    loaded.base_model.register_forward_pre_hook(_count_tokens, with_kwargs=True)

    def by_row(module: Any, args: Any, kwargs: Any, found: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        states, positions_BL = [*args, *kwargs.values()][:2]
        turned_B = positions_BL.amax(-1) >= at
        if bool(turned_B.all()) or not bool(turned_B.any()):
            return None
        encoded = tuple(part.clone() for part in found)
        for side_B in (turned_B, ~turned_B):
            parts = module.forward(states[side_B], positions_BL[side_B], *args[2:], **_others(kwargs))
            for whole, part in zip(encoded, parts, strict=True):
                whole[side_B] = part
        return encoded

    for module in loaded.modules():
        if hasattr(module, "rope_type"):
            module.register_forward_hook(by_row, with_kwargs=True)
    return model


def _others(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in ("x", "position_ids")}


def _count_tokens(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Say where tokens are, by the mask: else padding behind a row would make it longer."""
    mask: Any = kwargs.get("attention_mask")
    if kwargs.get("position_ids") is None and getattr(mask, "ndim", 0) == 2 and kwargs.get("past_key_values") is None:
        kwargs = {**kwargs, "position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
    return args, kwargs
