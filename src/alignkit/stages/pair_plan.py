"""The longest batches and the steps of the two stages that learn from pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from alignkit.choices import Batching
from alignkit.jobs import StageJob
from alignkit.planning.arguments import steps_of
from alignkit.planning.passes import longest, with_places, without_idle
from alignkit.planning.rehearsal import Batch
from alignkit.stages.pair_batches import build_collator, expected_layout
from alignkit.stages.pairs import PreparedPairs
from alignkit.training.pairs import model_inputs


def longest_pairs(job: StageJob, prepared: PreparedPairs, size: int, *, attention: str) -> Batch:
    """Lay out the longest pairs as training would, with what the model is called with and where the labels are."""
    pairs = prepared.data.train
    layout = expected_layout(job, may_share=prepared.may_share)
    collator = build_collator(prepared.tokenizer, layout)
    laid = collator([pairs.dataset[i] for i in longest(pairs.line_lengths(), size)])
    inputs: dict[str, Tensor] = model_inputs(laid, attention=attention, shared_prompt=layout is Batching.packed)
    inputs.pop("use_cache")
    return with_places(without_idle(inputs), laid["shift_labels"])


def steps_of_pairs(args: Any, prepared: PreparedPairs, *, processes: int) -> Mapping[str, Any]:
    """Count pairs, tokens and steps; the tokens are those of a prompt and both responses."""
    lengths = prepared.data.train.line_lengths()
    return steps_of(args, num_rows=len(lengths), num_tokens=sum(lengths), processes=processes)
