"""Whether rows that share a line score as they do alone, tried on the very model that will train."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from alignkit.data.batches.batching import Collator
from alignkit.data.batches.pair_batching import PairCollator
from alignkit.training.pairs import inputs_of, model_inputs

_TAKE_A_MASK = ("eager", "sdpa")  # flash kernels know causal attention only


def packs_exactly(model: torch.nn.Module, *, vocab_size: int) -> bool:
    """Whether rows packed into one line score as they do alone, tried on the very model that will train.

    Two short rows are scored alone and packed. Rounding moves logits by far less than another row in view does, so the
    bound is a share of the logits' own spread: 0.1 % in float32, a quarter in half precision.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in (9, 5)]
    encoded = [{"input_ids": ids, "labels": ids, "row_index": i} for i, ids in enumerate(rows)]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in rows]
            batch = Collator(pad_id=0, packed=True, one_line=True)(encoded)
            packed = model(
                input_ids=batch["input_ids"].to(device), position_ids=batch["position_ids"].to(device), use_cache=False
            ).logits[0]
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float()
    bound = (1e-3 if alone[0].dtype == torch.float32 else 0.25) * float(expected.std())
    return bool((packed.float() - expected).abs().max() <= bound)


def may_share_prompts(model: PreTrainedModel) -> bool:
    """Whether the architecture could: a mask of ours takes the place of a sliding window's, and flash takes none."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return model.config._attn_implementation in _TAKE_A_MASK and not windowed and set(kinds) == {"full_attention"}


def shares_prompts_exactly(model: PreTrainedModel, head: nn.Module) -> bool:
    """Whether two responses behind one prompt score as they do behind one each, tried on the very model that trains.

    The bound is a share of the states' own spread: 0.1 % in float32, a quarter in half precision.

    Args:
        model: any model with a causal backbone.
        head: its last module, which is called with the backbone's states.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    ids = [torch.randint(size, (length,), generator=generator).tolist() for length in (5, 4, 6)]
    pair = {"prompt_ids": ids[0], "chosen_ids": ids[1], "rejected_ids": ids[2], "row_index": 0}
    weight = next(model.parameters())
    states = []
    was_training = model.training
    model.eval()
    try:
        for shared in (False, True):
            batch = {k: v.to(weight.device) for k, v in PairCollator(0, shared_prompt=shared)([pair, pair]).items()}
            inputs = model_inputs(batch, attention=model.config._attn_implementation, shared_prompt=shared)
            with torch.inference_mode(), inputs_of(head) as caught:
                model(**inputs)
            # both layouts in one order: chosen states, then rejected ones
            order = [caught[0][batch["parts"] == part] for part in (2, 3)]
            states.append(torch.cat(order).float())
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # an architecture that makes more of its mask than attention (ALiBi, state spaces)
    finally:
        model.train(was_training)
    bound = (1e-3 if weight.dtype == torch.float32 else 0.25) * float(states[0].std())
    return bool((states[0] - states[1]).abs().max() <= bound)
