"""Whether rows that share a line score as they do alone, tried on the very model that will train."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from alignkit.data.batches.batching import Collator
from alignkit.data.batches.pair_batching import PairCollator
from alignkit.long_rope import turns_at
from alignkit.models.load import num_positions
from alignkit.training.pairs import inputs_of, model_inputs

_TAKE_A_MASK = ("eager", "sdpa")  # flash kernels know causal attention only
# What configurations call how far attention reaches, or where it is cut; and what else has such names.
_WINDOW = re.compile(r"window|sliding|chunk|span|local_attention|(^|_)block_size|index_topk|indexer_budget|index_kpool")
_NO_WINDOW = re.compile(r"layers|pattern|feed_forward|lm_head|num_|prob")


def windows(config: PreTrainedConfig) -> list[int]:
    """Return every number of tokens that a configuration names as a bound of attention, by whatever name."""
    named = config.get_text_config().to_dict().items()
    found = [n for name, value in named if _WINDOW.search(name) and not _NO_WINDOW.search(name) for n in _ints(value)]
    return sorted({number for number in found if number > 1})


def _ints(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _ints(item)


def packs_exactly(model: PreTrainedModel, *, longest_row: int, longest_line: int) -> bool:
    """Whether rows packed into one line score as they do alone, tried on the very model that will train.

    Rows are scored alone and packed, in a line beyond every window that a line of the data reaches, and beside one past
    which positions are encoded otherwise. Rounding moves logits by far less than another row in view does, so the bound
    is a share of the logits' own spread: 0.1 % in float32, a quarter in half precision.

    Args:
        model: causal.
        longest_row: tokens in the longest row of the data.
        longest_line: tokens in its longest line.
    """
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.get_text_config().vocab_size
    sizes = [*windows(model.config), *filter(None, [turns_at(model.config)])]
    lengths = _probe_lengths(sizes, longest_row, longest_line)
    rows = [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]
    batch = Collator(pad_id=0, packed=True, one_line=True)(
        [{"input_ids": ids, "labels": ids, "row_index": i} for i, ids in enumerate(rows)]
    )
    rows = [rows[i] for i in batch["row_index"].tolist()]  # as they lie
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in rows]
            packed = model(
                input_ids=batch["input_ids"].to(device), position_ids=batch["position_ids"].to(device), use_cache=False
            ).logits[0]
    finally:
        model.train(was_training)
    expected = torch.cat(alone).float()
    bound = (1e-3 if alone[0].dtype == torch.float32 else 0.25) * float(expected.std())
    return bool((packed.float() - expected).abs().max() <= bound)


def _probe_lengths(sizes: list[int], longest_row: int, longest_line: int) -> list[int]:
    """Lengths of rows, longest first, that lie across the end of every window that a line of the data reaches."""
    reach = max((size for size in sizes if size < longest_line), default=0)
    lengths: list[int] = []
    while reach and (sum(lengths) <= reach or len(lengths) < 2):
        # none as the one before, lest all of them begin where a window does
        lengths.append(max(2, min(longest_row, reach + 9) - len(lengths)))
    return [*lengths, 9, 5]


def may_share_prompts(model: PreTrainedModel, *, longest_line: int) -> bool:
    """Whether the architecture could: a mask of ours takes the place of a sliding window's, and flash takes none.

    A window is counted in columns of a line, and behind the first response the second one has the prompt further away:
    no line may reach past one. Nor may one reach past where LongRoPE encodes all that it holds otherwise.

    Args:
        model: any causal one, without weights too.
        longest_line: tokens in the longest pair: a prompt and both responses.
    """
    config = model.config.get_text_config()
    turn = turns_at(config)
    if any(size < longest_line for size in [*windows(config), *([] if turn is None else [turn])]):
        return False
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return model.config._attn_implementation in _TAKE_A_MASK and not windowed and set(kinds) == {"full_attention"}


def shares_prompts_exactly(model: PreTrainedModel, head: nn.Module, *, longest_line: int) -> bool:
    """Whether two responses behind one prompt score as they do behind one each, tried on the very model that trains.

    Lines of the data that are longer than a row may be are tried too: some models keep a causal mask of that many
    columns. The bound is a share of the states' own spread: 0.1 % in float32, a quarter in half precision.

    Args:
        model: any model with a causal backbone.
        head: its last module, which is called with the backbone's states.
        longest_line: tokens in the longest pair: a prompt and both responses.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    positions = num_positions(model.config) or longest_line
    lengths = (5, 4, 6) if longest_line <= positions else (5, positions // 2 + 1, positions // 2)
    ids = [torch.randint(size, (length,), generator=generator).tolist() for length in lengths]
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
