"""How rows lie in a batch of SFT, and in which order they come."""

from __future__ import annotations

from functools import partial
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.choices import Batching
from alignkit.data.batches.batching import Collator, EpochOrder, padding_share
from alignkit.data.sets.sft import SftSet
from alignkit.errors import ConfigError
from alignkit.jobs import SftJob
from alignkit.training.arguments import rows_a_step
from alignkit.training.layouts import packs_exactly

_CAN_PACK = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def expected_layout(job: SftJob, attention: str) -> Batching:
    """Return what `choose_layout` will choose, as far as the attention's implementation tells."""
    if job.data.batching is not Batching.auto:
        return job.data.batching
    return Batching.packed if attention in _CAN_PACK else _unpacked(job)


def choose_layout(job: SftJob, model: PreTrainedModel, args: Any, *, longest_row: int) -> Batching:
    """Choose packed where rows stay apart on the very model that trains; packing by force must be exact too.

    Args:
        job: of the stage.
        model: that trains.
        args: upstream's, which say how many rows share a line where flash kernels want them in one.
        longest_row: tokens in the longest row.

    Raises:
        ConfigError: `data.batching=packed` would let rows see each other.
    """
    if job.data.batching not in (Batching.auto, Batching.packed):
        return job.data.batching
    attention = model.config._attn_implementation
    num_rows = max(args.per_device_train_batch_size, args.per_device_eval_batch_size) if _in_one_line(attention) else 1
    if attention in _CAN_PACK and packs_exactly(model, longest_row=longest_row, longest_line=num_rows * longest_row):
        return Batching.packed
    if job.data.batching is Batching.packed:
        raise ConfigError(
            "data.batching=packed: packed rows would see each other in this model with "
            f"model.attn_implementation={attention}; take {_unpacked(job)}, or another implementation"
        )
    return _unpacked(job)


def _unpacked(job: SftJob) -> Batching:
    return Batching.padded if job.data.streaming else Batching.grouped


def build_collator(tokenizer: PreTrainedTokenizerBase, layout: Batching, attention: str) -> Collator:
    """Build the collator that lays rows out like this, in one line where flash kernels want them so."""
    pad_id, packed = int(tokenizer.pad_token_id), layout is Batching.packed
    return Collator(pad_id, packed=packed, one_line=_in_one_line(attention))


def _in_one_line(attention: str) -> bool:
    return attention.startswith("flash")


def padding_of(job: SftJob, rows: SftSet, layout: Batching, *, batch_size: int, rows_a_step: int) -> float:
    """Compute the share of the tokens in an epoch's batches that is padding."""
    order: dict[str, Any] = {"seed": job.seed, "shuffle": job.data.shuffle}
    return padding_share(rows.lengths, batch_size=batch_size, rows_a_step=rows_a_step, layout=layout, **order)


def describe_padding(layout: Batching, padding: float) -> str:
    """Say how rows lie in a batch, and what share of it holds no token of a row."""
    how = {
        Batching.padded: "padded: each row filled up to the longest of its batch",
        Batching.grouped: "grouped: rows of like length together, each filled up to the longest",
        Batching.packed: "packed: rows end to end in lines, each line filled up to the longest",
    }
    return f"{how[layout]}; {padding:.1%} of a batch is filling"


def epoch_orders(job: SftJob, layout: Batching, args: Any) -> dict[str, Any]:
    """Return the order of training rows in each epoch, and of held-out rows, as keyword arguments of the trainer."""
    order = partial(_order, seed=job.seed)
    group = rows_a_step(args) if layout is Batching.grouped else 0
    return {
        "train_order": partial(order, shuffle=job.data.shuffle, group=group),
        # Held-out rows are only scored: sorted by length they cost the least padding.
        "eval_order": lambda dataset: order(dataset, shuffle=False, group=len(dataset)),
    }


def _order(dataset: Dataset, *, seed: int, shuffle: bool, group: int) -> EpochOrder:
    rows = SftSet(dataset)
    return EpochOrder(rows.lengths, seed=seed, shuffle=shuffle, group=group, num_fillers=rows.num_fillers)
