"""Whether a model sees padding in front of a row, tried on the model: a state that runs over tokens may take it in."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import torch
from torch.nn.functional import pad

_NUM_PADDED = 5
# What configurations call how many earlier tokens a layer chooses to attend to, or what it chooses them by.
_CHOOSES = re.compile(r"index(er)?_(topk|head|n_heads|budget|kpool|block)|keep_window_size")
_AT_MOST = ("index_topk", "keep_window_size")


def takes_positions(model: Any) -> bool:
    """Tell whether a model, adapters or not, can be told where the tokens of a row are."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # a PEFT model takes any argument
    return "position_ids" in inspect.signature(base.forward).parameters


def chooses_columns(config: Any, num_tokens: float) -> bool:
    """Tell whether a model leaves out some of this many tokens by a choice of its own.

    Which of two that are alike it takes depends on where they lie in a batch, and so on padding.
    """
    named = {k: v for k, v in config.get_text_config().to_dict().items() if _CHOOSES.match(k) and v is not None}
    return bool(named) and num_tokens > min((named[name] for name in _AT_MOST if name in named), default=0)


@torch.no_grad()
def sees_left_padding(model: Any, *, num_tokens: float = math.inf) -> bool:
    """Tell whether padding in front of a row changes what a model makes of it, though the attention mask hides it.

    Padding behind a row is never seen: the models are causal. The bound is a share of the outputs' own spread: 0.1 % in
    float32, a quarter in half precision.

    Args:
        model: causal.
        num_tokens: in the longest row, for models that choose what they attend to.
    """
    if chooses_columns(model.config, num_tokens):
        return True
    ids_BL = torch.arange(3, device=next(model.parameters()).device)[None]
    was_training = model.training
    model.train(False)
    try:
        outputs = []
        for width in (0, _NUM_PADDED):
            mask_BL = pad(torch.ones_like(ids_BL), (width, 0))
            positions = {"position_ids": (mask_BL.cumsum(-1) - 1).clamp(min=0)} if takes_positions(model) else {}
            padded = model(input_ids=pad(ids_BL, (width, 0)), attention_mask=mask_BL, use_cache=False, **positions)
            outputs.append(padded[0][:, width:])
    finally:
        model.train(was_training)
    alone, behind = outputs
    bound = (1e-3 if alone.dtype == torch.float32 else 0.25) * float(alone.float().std())
    return not bool((alone.float() - behind.float()).abs().max() <= bound)
