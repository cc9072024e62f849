"""A reward model from preference pairs: Bradley-Terry, with a report card on held-out pairs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignkit.evaluate.card import report_card, write_card
from alignkit.jobs import RewardJob
from alignkit.models.load import load_merged
from alignkit.models.lora import build_lora
from alignkit.models.reward import SCORES, as_reward_model, score_head, scores_of
from alignkit.models.reward_readme import write_reward_readme
from alignkit.models.source import ModelSource
from alignkit.runs.given import Given
from alignkit.runs.log import is_main_process
from alignkit.runs.report import conclude
from alignkit.stages.fates import check_fates
from alignkit.stages.opening import open_run
from alignkit.stages.pair_batches import build_collator, choose_layout, epoch_orders
from alignkit.stages.pairs import PreparedPairs, write_ledger_and_plan
from alignkit.stages.reward.check import check_job
from alignkit.stages.reward.data import prepare
from alignkit.stages.sections import build_arguments
from alignkit.stages.shortage import what_to_lower
from alignkit.stages.trainer import build_callbacks, eval_dataset, filled, kept_step
from alignkit.training.reward import RewardTrainer
from alignkit.training.session import save, train
from alignkit.training.sharding import is_sharded

logger = logging.getLogger(__name__)

_THEN = "alignkit score {run} --pairs FILE"  # the command to try next


def run(
    job: RewardJob,
    run_dir: Path,
    *,
    given: Given | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: type[RewardTrainer] = RewardTrainer,
) -> None:
    """Train, and leave a run directory that `alignkit score`, `alignkit ppo` and transformers take as a reward model.

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
    with open_run(job, "reward", run_dir, given, trainer_class) as entry:
        if entry.finished:
            return
        prepared = prepare(job, run_dir, now=entry.now)
        check_fates(entry, prepared.data.ledger)
        args = build_arguments(
            job, "reward", run_dir, record=entry.record, held_out=bool(prepared.data.evals), max_length=None
        )
        model = load_merged(job.model, tokenizer=prepared.tokenizer, seed=job.seed, trainable=not job.lora)
        model = as_reward_model(model, prepared.tokenizer, seed=job.seed)
        layout = choose_layout(
            job, model, score_head(model), may_share=prepared.may_share, longest_line=prepared.longest_line
        )
        entry.begin()
        train_rows, held_out = filled(prepared.data, args)
        trainer = trainer_class(
            model=model,
            args=args,
            train_dataset=train_rows.dataset,
            eval_dataset=eval_dataset(held_out),
            processing_class=prepared.tokenizer,
            data_collator=build_collator(prepared.tokenizer, layout),
            peft_config=build_lora(job.lora, model, task_type="SEQ_CLS") if job.lora else None,
            callbacks=build_callbacks(job, run_dir, *callbacks),
            row_sources=prepared.data.train.sources,
            **epoch_orders(job, layout, args),
        )
        write_ledger_and_plan(job, trainer, prepared, layout, entry)
        if (source := ModelSource.of(job.model)).is_adapter:
            logger.info(
                "%-9s the adapter %s is merged into its base, which is saved with this run", "start", source.folder
            )
        with entry.timed("train"):
            train(trainer, resume=entry.resuming, stage="reward", lower=what_to_lower(job))
        save(trainer, run_dir, prepared.tokenizer, prepared.template, stop_ids=None)
        if is_main_process():
            write_reward_readme(
                run_dir,
                end_token=prepared.template.end_token,
                kwargs=job.template.kwargs,
                is_adapter=bool(job.lora),
            )
        card = _card(trainer, prepared, run_dir)
        entry.result = card | conclude(
            run_dir,
            trainer.state.log_history,
            samples=[],
            kept_step=kept_step(trainer),
            unit="nats per pair",
            then=_THEN,
        )


def _card(trainer: RewardTrainer, prepared: PreparedPairs, run_dir: Path) -> dict[str, Any]:
    """Score the held-out pairs, and write the report card of the scores."""
    if is_sharded(trainer) or not is_main_process() or not prepared.data.evals:
        return {}
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    cards = {}
    for name, held_out in prepared.data.evals.items():
        rows = held_out.dataset
        ids = [
            prompt + response
            for side in ("chosen_ids", "rejected_ids")
            for prompt, response in zip(rows["prompt_ids"], rows[side], strict=True)
        ]
        batch_size = trainer.args.per_device_eval_batch_size
        scores = scores_of(model, ids, pad_id=int(prepared.tokenizer.pad_token_id), batch_size=batch_size)
        _, num_chosen, num_rejected = held_out.side_lengths()
        cards[name] = report_card(scores[: len(rows)], scores[len(rows) :], num_chosen, num_rejected)
    first = next(iter(cards.values()))
    (run_dir / SCORES).write_text(json.dumps({"mean": first["score_mean"], "std": first["score_std"]}) + "\n")
    write_card(cards, run_dir)
    return {f"{name}_accuracy": card["accuracy"]["value"] for name, card in cards.items()}
