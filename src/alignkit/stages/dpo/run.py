"""Direct preference optimisation: a better policy from preference pairs, without a reward model."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel

from alignkit.config import DpoJob, Init, ModelConfig
from alignkit.data.views.supervised import PairView
from alignkit.errors import AlignkitError, ConfigError
from alignkit.models.load import check_model, load_model, load_tokenizer
from alignkit.models.lora import build_lora
from alignkit.runs.log import run_log
from alignkit.runs.report import conclude
from alignkit.stages import pairs
from alignkit.stages.opening import opened
from alignkit.stages.samples import answers, check_samples, samples
from alignkit.stages.sections import adapter_on_adapter, arguments
from alignkit.training.dpo import DpoTrainer, check_losses
from alignkit.training.lm_head import lm_head
from alignkit.training.metrics import MetricsFile
from alignkit.training.reference_cache import with_reference
from alignkit.training.session import save, train

logger = logging.getLogger(__name__)


def run(job: DpoJob, run_dir: Path, *, record: Mapping[str, Any] | None = None) -> None:
    """Train, and leave a run directory that any later command takes as a model.

    Args:
        job: the settings.
        run_dir: of this run; beside it only kept reference log-probabilities are written.
        record: the settings as they were given, interpolations unresolved, for the run's own record.

    Raises:
        AlignkitError: the user's mistake, or what stopped the training, in words.
    """
    check(job)
    with opened(job, "dpo", run_dir, record) as entry:
        if entry.finished:
            return
        prepared = pairs.prepare(job, "dpo", run_dir)
        model = load_model(job.model, tokenizer=prepared.tokenizer, seed=job.seed, trainable=not job.lora)
        layout = pairs.layout_of(job, prepared, model, lm_head(model))
        ours = {"max_length": None, "precompute_ref_log_probs": job.reference.keep}
        args = arguments(job, "dpo", run_dir, held_out=bool(prepared.data.evals), **ours)
        entry.begin()
        evals = {name: held_out.dataset for name, held_out in prepared.data.evals.items()}
        trainer = DpoTrainer(
            model=model,
            ref_model=_reference(job, model),
            args=args,
            train_dataset=prepared.data.train.dataset,
            # Upstream puts the names of several sets into the metrics' names; a single set is simply `eval`.
            eval_dataset=evals if len(evals) > 1 else next(iter(evals.values()), None),
            processing_class=prepared.tokenizer,
            data_collator=pairs.collator(prepared, layout),
            peft_config=build_lora(job.lora, model) if job.lora else None,
            callbacks=[
                MetricsFile(run_dir / "metrics.jsonl"),
                *([EarlyStoppingCallback(job.early_stopping)] if job.early_stopping else []),
            ],
            row_sources=prepared.data.train.sources,
            **pairs.orders(job, layout, args),
        )
        pairs.begin(job, trainer, prepared, layout, run_dir)
        logger.info("%-9s %s", "reference", _described(job, model))
        if job.reference.keep:
            trainer.keep_reference(partial(with_reference, trainer, folder=run_dir.parent / ".reference"))
        examples, template = prepared.data.examples, prepared.template
        prompts = [example.prompt() for example in examples]
        answer = partial(answers, trainer, prompts, template, prepared.tokenizer, job.sampling, seed=job.seed)
        before = answer()
        train(trainer, resume=entry.resuming)
        save(trainer, run_dir, prepared.tokenizer, template, end_id=template.end_id)
        said = samples(prompts, [example.messages[-1].content for example in examples], before, answer())
        kept_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        entry.result = conclude(
            run_dir, trainer.state.log_history, samples=said, kept_step=kept_step, unit="nats per pair"
        )
        entry.result |= _preferences(trainer.state.log_history)


def check(job: DpoJob) -> None:
    """Find everything that can be known before a file is read through or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = (
        pairs.check(job, "dpo")
        + adapter_on_adapter(job)
        + check_losses(job.train)
        + check_samples(job.samples, job.sampling)
    )
    if "margin" in job.data.columns:
        problems.append("data.columns.margin has no effect: DPO's losses take no margin, alignkit reward does")
    if job.reference.name is not None:
        reference = _reference_section(job)
        try:
            check_model(reference)
            if load_tokenizer(reference).get_vocab() != load_tokenizer(job.model).get_vocab():
                problems.append(
                    f"reference.name: {job.reference.name} has another vocabulary than {job.model.name}, so their "
                    "log-probabilities cannot be compared"
                )
        except AlignkitError as error:
            problems += [line.replace("model.name", "reference.name") for line in error.problems]
    if problems:
        raise ConfigError(*dict.fromkeys(problems))


def view(job: DpoJob) -> PairView:
    """What `alignkit inspect dpo` shows."""
    with run_log():
        check(job)
        return pairs.view(job, "dpo")


def _reference_section(job: DpoJob) -> ModelConfig:
    assert job.reference.name is not None
    return dataclasses.replace(job.model, name=job.reference.name, revision=None, init=Init.pretrained, config={})


def _reference(job: DpoJob, model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel | None:
    """A frozen model; None where the policy itself can play the reference: by its adapters, or before it changes."""
    if job.reference.name is not None:
        section = _reference_section(job)
        loaded = load_model(section, tokenizer=load_tokenizer(section), seed=job.seed, trainable=False)
        return loaded.merge_and_unload() if isinstance(loaded, PeftModel) else loaded
    if job.lora or isinstance(model, PeftModel) or job.reference.keep:
        return None
    return copy.deepcopy(model).requires_grad_(False)


def _described(job: DpoJob, model: PreTrainedModel | PeftModel) -> str:
    if job.reference.name is not None:
        return job.reference.name
    if isinstance(model, PeftModel):
        return "the policy with a frozen copy of the adapter it starts with"
    if job.lora:
        return "the policy with its adapter off"
    return "the policy, before its first step" if job.reference.keep else "a frozen copy of the policy"


def _preferences(history: list[dict[str, float]]) -> dict[str, Any]:
    """Held-out accuracy, margin and log-probabilities at the start and at the end, said in words too."""
    names = ("rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
    figures = {}
    for key in dict.fromkeys(key for entry in history for key in entry):
        if key.startswith("eval_") and key.endswith(names):
            values = [entry[key] for entry in history if key in entry]
            figures[key] = {"first": values[0], "last": values[-1]}
            logger.info("%-24s %.4f → %.4f", key.removeprefix("eval_"), values[0], values[-1])
            if key.endswith("logps/chosen") and values[-1] < values[0]:
                logger.warning(
                    "the chosen responses became less likely by %.2f nats: DPO only widens the margin; a lower "
                    "train.learning_rate, a higher train.beta, or train.loss_type=[sigmoid,sft] holds on to them",
                    values[0] - values[-1],
                )
    return figures
