"""How pairs lie in a batch, and in which order they come: what the two stages that learn from them share."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.choices import Batching
from alignkit.data.batches.batching import EpochOrder
from alignkit.data.batches.pair_batching import PairCollator
from alignkit.data.sets.pairs import PairSet
from alignkit.errors import ConfigError
from alignkit.jobs import StageJob
from alignkit.training.arguments import rows_a_step
from alignkit.training.layouts import shares_prompts_exactly


def expected_layout(job: StageJob, *, may_share: bool) -> Batching:
    """Return what `choose_layout` will choose, as far as the architecture tells."""
    if job.data.batching is not Batching.auto:
        return Batching(job.data.batching)
    return Batching.packed if may_share else Batching.grouped


def choose_layout(
    job: StageJob, model: PreTrainedModel, head: nn.Module, *, may_share: bool, longest_line: int
) -> Batching:
    """Choose packed (the prompt once a pair) where the scores stay the same on the very model that trains.

    Args:
        job: of the stage.
        model: that trains.
        head: its last module, which is called with the backbone's states.
        may_share: the architecture could take a pair's prompt once.
        longest_line: tokens in the longest pair: a prompt and both responses.

    Raises:
        ConfigError: `data.batching=packed` would change the scores.
    """
    if job.data.batching not in (Batching.auto, Batching.packed):
        return Batching(job.data.batching)
    if may_share and shares_prompts_exactly(model, head, longest_line=longest_line):
        return Batching.packed
    if job.data.batching is Batching.packed:
        raise ConfigError(
            "data.batching=packed: two responses behind one prompt would not score as they do alone in this model with "
            f"model.attn_implementation={model.config._attn_implementation}; take grouped, or sdpa"
        )
    return Batching.grouped


def build_collator(tokenizer: PreTrainedTokenizerBase, layout: Batching) -> PairCollator:
    """Build the collator that lays pairs out like this."""
    return PairCollator(int(tokenizer.pad_token_id), shared_prompt=layout is Batching.packed)


def describe_batches(job: StageJob, pairs: PairSet, layout: Batching, *, batch_size: int, pairs_a_step: int) -> str:
    """Say in a line how pairs lie in batches, and how much of these is padding."""
    lengths = _line_lengths(pairs, layout)
    order = list(_order(pairs, job, layout, pairs_a_step))
    batches = [[lengths[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
    padding = 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
    once = ", a prompt once for both responses" if layout is Batching.packed else ""
    filled = f"each line filled up to the longest of its batch; {padding:.1%} of a batch is filling"
    return f"batches of {batch_size} pairs, {layout}{once}: {filled}"


def epoch_orders(job: StageJob, layout: Batching, args: Any) -> dict[str, Any]:
    """Return the order of training pairs in each epoch, and of held-out pairs, as keyword arguments of the trainer."""

    def train_order(dataset: Dataset) -> EpochOrder:
        return _order(PairSet(dataset), job, layout, rows_a_step(args))

    def eval_order(dataset: Dataset) -> EpochOrder:
        # Held-out pairs are only scored: sorted by length they cost the least padding.
        return _epoch_order(PairSet(dataset), job, layout, shuffle=False, group=len(dataset))

    return {"train_order": train_order, "eval_order": eval_order}


def _order(pairs: PairSet, job: StageJob, layout: Batching, pairs_a_step: int) -> EpochOrder:
    group = 0 if layout is Batching.padded else pairs_a_step
    return _epoch_order(pairs, job, layout, shuffle=job.data.shuffle, group=group)


def _epoch_order(pairs: PairSet, job: StageJob, layout: Batching, *, shuffle: bool, group: int) -> EpochOrder:
    lengths = _line_lengths(pairs, layout)
    return EpochOrder(lengths, seed=job.seed, shuffle=shuffle, group=group, num_fillers=pairs.num_fillers)


def _line_lengths(pairs: PairSet, layout: Batching) -> list[int]:
    if layout is Batching.packed:
        return pairs.line_lengths()
    return [prompt + max(chosen, rejected) for prompt, chosen, rejected in zip(*pairs.side_lengths(), strict=True)]
