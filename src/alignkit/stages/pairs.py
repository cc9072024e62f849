"""What the two stages that learn from preferences share: their rows, and how these lie in a batch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.choices import Batching
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.sets.loaded import load_on_main_process
from alignkit.data.sets.pairs import PairData, check_pair_data, load_pairs
from alignkit.data.views.first_rows import write_first_rows
from alignkit.data.views.supervised import PairView
from alignkit.data.views.view import title
from alignkit.errors import ConfigError
from alignkit.jobs import StageJob
from alignkit.models.load import load_tokenizer, longest_row
from alignkit.models.lora import check_lora
from alignkit.models.reward import reward_problem, reward_tokenizer
from alignkit.models.skeleton import skeleton
from alignkit.runs.directory import Run
from alignkit.stages.opening import log_plan, warn
from alignkit.stages.pair_batches import build_collator, describe_batches, expected_layout
from alignkit.stages.sections import check_sections, template_mismatches
from alignkit.training.arguments import rows_a_step
from alignkit.training.layouts import may_share_prompts
from alignkit.training.router_loss import adds_router_loss


def check_pairs(job: StageJob, stage: str) -> list[str]:
    """List what is wrong with a job before a file is read through, one line each."""
    return check_pair_data(job.data, scores_tokens=stage == "dpo") + check_sections(job, stage)


@dataclass
class PreparedPairs:
    """What `view` shows and training starts from.

    Attributes:
        tokenizer: of the model.
        template: bound to it.
        data: the encoded pairs, and what became of the others.
        may_share: the architecture could take a pair's prompt once.
        longest_line: tokens in the longest pair: a prompt and both responses.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    data: PairData
    may_share: bool
    longest_line: int


def prepare_pairs(
    job: StageJob,
    run_dir: Path | None,
    *,
    is_reward: bool = False,
    use_margin: bool = False,
    num_examples: int = 0,
    now: datetime | None = None,
) -> PreparedPairs:
    """Read, render and encode the pairs, without loading weights.

    Args:
        job: settings that the stage's own `check_job` passed.
        run_dir: where several processes exchange the encoded rows; None with one process.
        is_reward: a reward model will train on them: their last token must not be padding.
        use_margin: keep how much better the chosen response is, where the rows say so.
        num_examples: how many rows to keep for samples.
        now: what a template that asks for the date sees; None leaves it the clock.

    Raises:
        ConfigError: settings that do not fit the model.
        DataError: rows that cannot be trained on.
    """
    tokenizer = load_tokenizer(job.model)
    template = load_template(job.template, tokenizer, now=now)
    bare = skeleton(job.model)
    if is_reward:
        if problem := reward_problem(bare.config):
            raise ConfigError(problem)
        tokenizer = reward_tokenizer(tokenizer, end_id=template.end_id)
    if job.lora:
        check_lora(job.lora, bare)
    counts_prompts = not is_reward and adds_router_loss(bare.config, job.train)
    if counts_prompts and job.data.batching is Batching.packed:
        raise ConfigError(
            "data.batching=packed: the router's loss of this mixture would count a pair's prompt once, not for each "
            "response; take grouped, or train.router_aux_loss_coef=0"
        )
    load = partial(
        load_pairs,
        job.data,
        template,
        tokenizer,
        max_length=longest_row(job.data.max_length, bare.config),
        seed=job.seed,
        num_examples=num_examples,
        use_margin=use_margin,
    )
    data = load() if run_dir is None else load_on_main_process(load, run_dir / ".encoded", PairData)
    longest_line = max(length for pairs in data.sets.values() for length in pairs.line_lengths())
    may_share = may_share_prompts(bare, longest_line=longest_line) and not counts_prompts
    return PreparedPairs(tokenizer, template, data, may_share, longest_line)


def view_pairs(job: StageJob, stage: str, prepared: PreparedPairs) -> PairView:
    """Put together what `alignkit inspect` shows of a stage that learns from pairs."""
    layout = expected_layout(job, may_share=prepared.may_share)
    batch_size = int(job.train.get("per_device_train_batch_size", 8))
    pairs_a_step = batch_size * int(job.train.get("gradient_accumulation_steps", 1))
    batches = describe_batches(job, prepared.data.train, layout, batch_size=batch_size, pairs_a_step=pairs_a_step)
    return _view(job, stage, prepared, layout, batches)


def _view(job: StageJob, stage: str, prepared: PreparedPairs, layout: Batching, batches: str) -> PairView:
    return PairView(
        title=title(stage, job, prepared.template),
        template_kwargs=job.template.kwargs,
        sets=prepared.data.sets,
        ledger=prepared.data.ledger,
        lint=prepared.data.lint,
        collator=build_collator(prepared.tokenizer, layout),
        batch_size=int(job.train.get("per_device_train_batch_size", 8)),
        tokenizer=prepared.tokenizer,
        max_dropped=job.data.max_dropped,
        facts=[
            *(source.line() for source in prepared.data.read),
            f"template {prepared.template.name}, a turn ends in {prepared.template.end_token}",
            batches,
        ],
    )


def write_ledger_and_plan(job: StageJob, trainer: Any, prepared: PreparedPairs, layout: Batching, run: Run) -> None:
    """Write the ledger and the first rows, and log what will happen and what is odd about the pairs."""
    data, args = prepared.data, trainer.args
    per_device = args.per_device_train_batch_size
    num_pairs = rows_a_step(args)
    batches = describe_batches(job, data.train, layout, batch_size=per_device, pairs_a_step=num_pairs)
    if trainer.is_world_process_zero():
        data.ledger.write(run.folder / "rows.jsonl")
        write_first_rows(run.folder, _view(job, run.stage, prepared, layout, batches))
    facts = {
        "rows": "; ".join(source.line() for source in data.read),
        "template": f"{prepared.template.name}; a turn ends in {prepared.template.end_token}",
        "batches": f"{num_pairs} pairs a step; {batches}",
    }
    log_plan(data.ledger, trainer, job, facts, run)
    warn(*template_mismatches(job, prepared.template), data.lint.warning())
