"""Supervised fine-tuning: from rows and a template to a trained run directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from alignkit.choices import Batching
from alignkit.data.views.first_rows import write_first_rows
from alignkit.jobs import SftJob
from alignkit.models.load import load_model
from alignkit.models.lora import build_lora
from alignkit.runs.given import Given
from alignkit.runs.report import conclude
from alignkit.stages.fates import check_fates
from alignkit.stages.opening import log_plan, open_run, warn
from alignkit.stages.samples import answer_samples, before_and_after, leave_out_unanswerable
from alignkit.stages.sections import build_arguments, template_mismatches
from alignkit.stages.sft.batches import build_collator, choose_layout, describe_padding, epoch_orders, padding_of
from alignkit.stages.sft.check import check_job
from alignkit.stages.sft.data import FIRST_ROWS, Prepared, parts_cost, prepare, view_of
from alignkit.stages.shortage import what_to_lower
from alignkit.stages.trainer import build_callbacks, eval_dataset, filled, kept_step
from alignkit.terminal import Lines
from alignkit.training.arguments import rows_a_step
from alignkit.training.router_loss import prepare_router_loss
from alignkit.training.session import save, train
from alignkit.training.sft import SftTrainer

logger = logging.getLogger(__name__)


def run(
    job: SftJob,
    run_dir: Path,
    *,
    given: Given | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: type[SftTrainer] = SftTrainer,
) -> None:
    """Train, and leave a run directory that any later command takes as a model.

    Args:
        job: the settings.
        run_dir: of this run; nothing else is written to.
        given: the settings as they were given, interpolations unresolved, and where they came from.
        callbacks: of transformers, told of every step.
        trainer_class: what trains.

    Raises:
        AlignkitError: the user's mistake, or what stopped the training, in words.
    """
    check_job(job)
    with open_run(job, "sft", run_dir, given, trainer_class) as entry:
        if entry.finished:
            return
        prepared = prepare(job, run_dir, now=entry.now)
        if prepared.stream is None:
            check_fates(entry, prepared.data.ledger)
        skip = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        args = build_arguments(job, "sft", run_dir, record=entry.record, held_out=bool(prepared.data.evals), **skip)
        model = load_model(job.model, tokenizer=prepared.tokenizer, seed=job.seed, trainable=not job.lora)
        prepare_router_loss(model, job.train)
        layout = choose_layout(job, model, args, longest_row=prepared.longest_row)
        entry.begin()
        trainer = _trainer(job, run_dir, args, model, prepared, layout, trainer_class, callbacks)
        _begin_ledger(run_dir, trainer, prepared)
        if trainer.is_world_process_zero():
            write_first_rows(run_dir, view_of(job, prepared, layout, ""))
        warn(*template_mismatches(job, prepared.template))
        log_plan(prepared.data.ledger, trainer, job, _facts(job, trainer, prepared, layout), entry)
        template = prepared.template
        examples = leave_out_unanswerable(prepared.data.examples, model.config, template, prepared.tokenizer, job)
        answer = partial(answer_samples, trainer, examples, template, prepared.tokenizer, job)
        before = answer()
        with entry.timed("train"):
            train(trainer, resume=entry.resuming, stage="sft", lower=what_to_lower(job))
        if prepared.stream is not None and prepared.stream.ledger is not None:
            logger.info("\nread as training went:\n%s\n", Lines(prepared.stream.ledger.table()))
        save(trainer, run_dir, prepared.tokenizer, template, stop_ids=template.stop_ids)
        samples = before_and_after(examples, before, answer())
        entry.result = conclude(run_dir, trainer.state.log_history, samples=samples, kept_step=kept_step(trainer))


def _trainer(
    job: SftJob,
    run_dir: Path,
    args: Any,
    model: PreTrainedModel,
    prepared: Prepared,
    layout: Batching,
    trainer_class: type[SftTrainer],
    callbacks: Sequence[TrainerCallback],
) -> SftTrainer:
    (train, evals), stream = filled(prepared.data, args), prepared.stream
    return trainer_class(
        model=model,
        args=args,
        train_dataset=train.dataset if stream is None else stream.dataset(),
        eval_dataset=eval_dataset(evals),
        processing_class=prepared.tokenizer,
        data_collator=build_collator(prepared.tokenizer, layout, prepared.attention),
        peft_config=build_lora(job.lora, model) if job.lora else None,
        callbacks=build_callbacks(job, run_dir, *callbacks),
        row_sources=train.sources if stream is None else stream.sources,
        **epoch_orders(job, layout, args),
    )


def _begin_ledger(run_dir: Path, trainer: SftTrainer, prepared: Prepared) -> None:
    path = run_dir / "rows.jsonl" if trainer.is_world_process_zero() else None
    ledger = prepared.data.ledger
    if prepared.stream is not None:
        prepared.stream.begin(path, [row for row in ledger.rows if row.set != "train"])
    elif path is not None:
        ledger.write(path)


def _facts(job: SftJob, trainer: SftTrainer, prepared: Prepared, layout: Batching) -> dict[str, str]:
    train, args = prepared.data.train, trainer.args
    num_rows, cost = rows_a_step(args), parts_cost(train, prepared.template)
    padding = padding_of(job, train, layout, batch_size=args.per_device_train_batch_size, rows_a_step=num_rows)
    return {
        "rows": "; ".join(source.line() for source in prepared.data.read),
        "template": f"{prepared.template.name}; a turn ends in {prepared.template.end_token}",
        **({"streaming": FIRST_ROWS} if job.data.streaming else {}),
        "tokens": f"{sum(train.lengths):,} {'read' if job.data.streaming else 'an epoch'}, "
        f"{train.num_supervised:,} of them supervised",
        **dict.fromkeys(["parts"] * bool(cost), "".join(cost)),
        "batches": f"{num_rows} rows a step; {describe_padding(layout, padding)}",
    }
