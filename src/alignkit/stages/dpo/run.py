"""Direct preference optimization: a better policy from preference pairs, without a reward model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignkit.jobs import DpoJob
from alignkit.models.load import load_model
from alignkit.models.lora import build_lora
from alignkit.runs.given import Given
from alignkit.runs.report import conclude
from alignkit.stages.dpo.check import check_job
from alignkit.stages.dpo.data import prepare
from alignkit.stages.dpo.reference import build_reference, describe_reference
from alignkit.stages.fates import check_fates
from alignkit.stages.opening import open_run
from alignkit.stages.pair_batches import build_collator, choose_layout, epoch_orders
from alignkit.stages.pairs import write_ledger_and_plan
from alignkit.stages.samples import answer_samples, before_and_after, leave_out_unanswerable
from alignkit.stages.sections import build_arguments
from alignkit.stages.shortage import what_to_lower
from alignkit.stages.trainer import build_callbacks, eval_dataset, filled, kept_step
from alignkit.training.dpo import DpoTrainer
from alignkit.training.lm_head import lm_head
from alignkit.training.reference_cache import with_reference
from alignkit.training.router_loss import prepare_router_loss
from alignkit.training.session import save, train

logger = logging.getLogger(__name__)

# Held-out figures at the start and at the end, beside the loss.
_PREFERENCES = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")


def run(
    job: DpoJob,
    run_dir: Path,
    *,
    given: Given | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: type[DpoTrainer] = DpoTrainer,
) -> None:
    """Train, and leave a run directory that any later command takes as a model.

    Args:
        job: the settings.
        run_dir: of this run; beside it only kept reference log-probabilities are written.
        given: the settings as they were given, interpolations unresolved, and where they came from.
        callbacks: of transformers, told of every step.
        trainer_class: what trains.

    Raises:
        AlignkitError: the user's mistake, or what stopped the training, in words.
    """
    check_job(job)
    with open_run(job, "dpo", run_dir, given, trainer_class) as entry:
        if entry.finished:
            return
        prepared = prepare(job, run_dir, now=entry.now)
        check_fates(entry, prepared.data.ledger)
        ours = {"max_length": None, "precompute_ref_log_probs": job.reference.keep}
        args = build_arguments(job, "dpo", run_dir, record=entry.record, held_out=bool(prepared.data.evals), **ours)
        model = load_model(job.model, tokenizer=prepared.tokenizer, seed=job.seed, trainable=not job.lora)
        prepare_router_loss(model, job.train)
        layout = choose_layout(
            job, model, lm_head(model), may_share=prepared.may_share, longest_line=prepared.longest_line
        )
        entry.begin()
        train_rows, held_out = filled(prepared.data, args)
        trainer = trainer_class(
            model=model,
            ref_model=build_reference(job, model),
            args=args,
            train_dataset=train_rows.dataset,
            eval_dataset=eval_dataset(held_out),
            processing_class=prepared.tokenizer,
            data_collator=build_collator(prepared.tokenizer, layout),
            peft_config=build_lora(job.lora, model) if job.lora else None,
            callbacks=build_callbacks(job, run_dir, *callbacks),
            row_sources=prepared.data.train.sources,
            **epoch_orders(job, layout, args),
        )
        write_ledger_and_plan(job, trainer, prepared, layout, entry)
        logger.info("%-9s %s", "reference", describe_reference(job, model))
        if job.reference.keep:
            trainer.keep_reference(partial(with_reference, trainer, folder=run_dir.parent / ".reference"))
        template = prepared.template
        examples = leave_out_unanswerable(prepared.data.examples, model.config, template, prepared.tokenizer, job)
        answer = partial(answer_samples, trainer, examples, template, prepared.tokenizer, job)
        before = answer()
        with entry.timed("train"):
            train(trainer, resume=entry.resuming, stage="dpo", lower=what_to_lower(job))
        save(trainer, run_dir, prepared.tokenizer, template, stop_ids=template.stop_ids)
        samples = before_and_after(examples, before, answer())
        entry.result = conclude(
            run_dir,
            trainer.state.log_history,
            samples=samples,
            kept_step=kept_step(trainer),
            unit="nats per pair",
            also=_PREFERENCES,
            judge=_less_likely,
        )


def _less_likely(figures: Mapping[str, Any]) -> list[str]:
    """What to say of held-out chosen responses that became less likely, one line for each set of which they did."""
    chosen = [figure for key, figure in figures.items() if key.endswith("logps/chosen")]
    return [
        f"the chosen responses became less likely by {figure['first'] - figure['last']:.2f} nats: DPO only widens the "
        "margin; a lower train.learning_rate, a higher train.beta, or train.loss_type=[sigmoid,sft] holds on to them"
        for figure in chosen
        if figure["last"] < figure["first"]
    ]
