"""What the two stages that learn from preferences share: their rows, and how these lie in a batch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.config import Batching
from alignkit.data.batches.batching import EpochOrder
from alignkit.data.batches.pair_batching import PairCollator
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.sets.encoded import load_on_main_process
from alignkit.data.sets.pairs import PairData, PairSet, check_pair_data, load_pairs
from alignkit.data.views.supervised import PairView
from alignkit.errors import ConfigError
from alignkit.models.load import load_tokenizer, longest_row
from alignkit.models.lora import build_lora
from alignkit.models.reward import reward_problem, reward_tokenizer
from alignkit.models.skeleton import skeleton
from alignkit.stages.opening import announce
from alignkit.stages.sections import check_sections, other_template
from alignkit.training.layouts import may_share_prompts, shares_prompts_exactly

logger = logging.getLogger(__name__)


def check(job: Any, stage: str) -> list[str]:
    """What is wrong with a job before a file is read through, one line each."""
    return check_pair_data(job.data) + check_sections(job, stage)


@dataclass
class Prepared:
    """What `view` shows and training starts from.

    Attributes:
        tokenizer: of the model.
        template: bound to it.
        data: the encoded pairs, and what became of the others.
        may_share: the architecture could take a pair's prompt once.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    data: PairData
    may_share: bool


def prepare(job: Any, stage: str, run_dir: Path | None = None) -> Prepared:
    """Read, render and encode the pairs, without loading weights.

    Args:
        job: settings that the stage's own `check` passed.
        stage: `reward` or `dpo`.
        run_dir: where several processes exchange the encoded rows; None with one process.

    Raises:
        ConfigError: settings that do not fit the model.
        DataError: rows that cannot be trained on.
    """
    tokenizer = load_tokenizer(job.model)
    template = load_template(job.template, tokenizer)
    bare = skeleton(job.model)
    if stage == "reward":
        if problem := reward_problem(bare.config):
            raise ConfigError(problem)
        tokenizer = reward_tokenizer(tokenizer, end_id=template.end_id)
    if job.lora:
        build_lora(job.lora, bare)
    load = partial(
        load_pairs,
        job.data,
        template,
        tokenizer,
        max_length=longest_row(job.data.max_length, bare.config),
        seed=job.seed,
        num_examples=job.samples if stage == "dpo" else 0,
        use_margin=stage == "reward" and job.use_margin,
    )
    data = load() if run_dir is None else load_on_main_process(load, run_dir / ".encoded", PairData)
    return Prepared(tokenizer, template, data, may_share_prompts(bare))


def view(job: Any, stage: str) -> PairView:
    """What `alignkit inspect` shows of a stage that learns from pairs."""
    prepared = prepare(job, stage)
    layout = job.data.batching
    if layout is Batching.auto:
        layout = Batching.packed if prepared.may_share else Batching.grouped
    batch_size = int(job.train.get("per_device_train_batch_size", 8))
    return PairView(
        title=f"{stage} {job.name}",
        sets=prepared.data.sets,
        ledger=prepared.data.ledger,
        lint=prepared.data.lint,
        collator=collator(prepared, layout),
        batch_size=batch_size,
        tokenizer=prepared.tokenizer,
        facts=[
            *(f"{source}: read as {format_}" for source, format_ in prepared.data.formats.items()),
            f"template {prepared.template.name}, a turn ends in {prepared.template.end_token}",
            described(job, prepared, layout, batch_size),
        ],
    )


def layout_of(job: Any, prepared: Prepared, model: PreTrainedModel, head: nn.Module) -> Batching:
    """Packed (the prompt once a pair) where the scores stay the same on the very model that trains."""
    if job.data.batching not in (Batching.auto, Batching.packed):
        return Batching(job.data.batching)
    if prepared.may_share and shares_prompts_exactly(model, head):
        return Batching.packed
    if job.data.batching is Batching.packed:
        raise ConfigError(
            "data.batching=packed: two responses behind one prompt would not score as they do alone in this model with "
            f"model.attn_implementation={model.config._attn_implementation}; take grouped, or sdpa"
        )
    return Batching.grouped


def collator(prepared: Prepared, layout: Batching) -> PairCollator:
    return PairCollator(int(prepared.tokenizer.pad_token_id), shared_prompt=layout is Batching.packed)


def described(job: Any, prepared: Prepared, layout: Batching, batch_size: int) -> str:
    """Batches in a line."""
    lengths = _line_lengths(prepared.data.train, layout)
    order = list(_order(prepared.data.train, job, layout, batch_size))
    batches = [[lengths[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
    padding = 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
    once = ", a prompt once for both responses" if layout is Batching.packed else ""
    return f"batches of {batch_size} pairs, {layout}{once}: {padding:.1%} padding"


def orders(job: Any, layout: Batching, args: Any) -> dict[str, Any]:
    """The order of training pairs in each epoch, and of held-out pairs, as keyword arguments of the trainer."""

    def train_order(dataset: Dataset) -> EpochOrder:
        return _order(PairSet(dataset), job, layout, args.per_device_train_batch_size)

    def eval_order(dataset: Dataset) -> EpochOrder:
        # Held-out pairs are only scored: sorted by length they cost the least padding.
        lengths = _line_lengths(PairSet(dataset), layout)
        return EpochOrder(lengths, seed=job.seed, shuffle=False, group=args.per_device_eval_batch_size)

    return {"train_order": train_order, "eval_order": eval_order}


def _order(pairs: PairSet, job: Any, layout: Batching, batch_size: int) -> EpochOrder:
    group = 0 if layout is Batching.padded else batch_size
    return EpochOrder(_line_lengths(pairs, layout), seed=job.seed, shuffle=job.data.shuffle, group=group)


def _line_lengths(pairs: PairSet, layout: Batching) -> list[int]:
    sides = zip(*pairs.side_lengths(), strict=True)
    if layout is Batching.packed:
        return [prompt + chosen + rejected + 1 for prompt, chosen, rejected in sides]
    return [prompt + max(chosen, rejected) for prompt, chosen, rejected in sides]


def begin(job: Any, trainer: Any, prepared: Prepared, layout: Batching, run_dir: Path) -> None:
    """Write the ledger, and say what will happen."""
    data, args = prepared.data, trainer.args
    if trainer.is_world_process_zero():
        data.ledger.write(run_dir / "rows.jsonl")
    rows_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    facts = {
        "rows": ", ".join(f"{source} read as {format_}" for source, format_ in data.formats.items()),
        "template": f"{prepared.template.name}; a turn ends in {prepared.template.end_token}",
        "batches": f"{rows_a_step} pairs a step; {described(job, prepared, layout, args.per_device_train_batch_size)}",
    }
    announce(data.ledger, trainer, job, facts, run_dir)
    lines = [other_template(job.model, prepared.template), data.lint.warning()]
    share = args.per_device_train_batch_size * args.world_size
    if args.world_size > 1 and len(data.train.dataset) % share:
        num = -len(data.train.dataset) % share
        lines.append(f"{num} pairs are repeated at the end of each epoch, so that every process has as many")
    for line in lines:
        if line:
            logger.warning("%s", line)
