"""Supervised fine-tuning: from rows and a template to a trained run directory.

`run` trains; `view` shows what `run` would train on. Both begin with `check` and `prepare`, so they cannot differ.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from alignkit.config import Batching, SftJob
from alignkit.data.batches.batching import FILLER, Collator, EpochOrder, padding_share
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.sets.encoded import load_on_main_process
from alignkit.data.sets.items import NUM_FIRST
from alignkit.data.sets.section import check_data
from alignkit.data.sets.sft import SftData, SftSet, load_sft
from alignkit.data.sets.streaming import Stream, check_streaming
from alignkit.data.views.supervised import View
from alignkit.errors import ConfigError
from alignkit.models.load import load_model, load_tokenizer, longest_row
from alignkit.models.lora import build_lora
from alignkit.models.skeleton import skeleton
from alignkit.runs.log import run_log
from alignkit.runs.report import conclude
from alignkit.stages.opening import announce, opened
from alignkit.stages.samples import answers, check_samples, samples
from alignkit.stages.sections import adapter_on_adapter, arguments, check_sections, other_template
from alignkit.training.layouts import packs_exactly
from alignkit.training.metrics import MetricsFile
from alignkit.training.session import save, train
from alignkit.training.sft import SftTrainer

logger = logging.getLogger(__name__)

_FIRST_ROWS = f"only the first {NUM_FIRST:,} rows of each source were read for these figures"
_CAN_PACK = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def run(job: SftJob, run_dir: Path, *, record: Mapping[str, Any] | None = None) -> None:
    """Train, and leave a run directory that any later command takes as a model.

    Args:
        job: the settings.
        run_dir: of this run; nothing else is written to.
        record: the settings as they were given, interpolations unresolved, for the run's own record.

    Raises:
        AlignkitError: the user's mistake, or what stopped the training, in words.
    """
    check(job)
    with opened(job, "sft", run_dir, record) as entry:
        if entry.finished:
            return
        prepared = prepare(job, run_dir)
        model = load_model(job.model, tokenizer=prepared.tokenizer, seed=job.seed, trainable=not job.lora)
        layout = _layout(job, model)
        skip = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
        args = arguments(job, "sft", run_dir, held_out=bool(prepared.data.evals), **skip)
        entry.begin()
        trainer = _trainer(job, run_dir, args, model, prepared, layout)
        _begin_ledger(run_dir, trainer, prepared)
        if line := other_template(job.model, prepared.template):
            logger.warning("%s", line)
        announce(prepared.data.ledger, trainer, job, _facts(job, trainer, prepared, layout), run_dir)
        asked = [row.prompt() for row in prepared.data.examples]
        answer = partial(answers, trainer, asked, prepared.template, prepared.tokenizer, job.sampling)
        before = answer(seed=job.seed)
        train(trainer, resume=entry.resuming)
        if prepared.stream is not None and prepared.stream.ledger is not None:
            logger.info("\nread as training went:\n%s\n", prepared.stream.ledger.table())
        save(trainer, run_dir, prepared.tokenizer, prepared.template, end_id=prepared.template.end_id)
        wanted = [row.messages[-1].content for row in prepared.data.examples]
        said = samples(asked, wanted, before, answer(seed=job.seed))
        kept_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        entry.result = conclude(run_dir, trainer.state.log_history, samples=said, kept_step=kept_step)


def check(job: SftJob) -> None:
    """Find everything that can be known before a file is read through or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = check_data(job.data) + check_samples(job.samples, job.sampling)
    problems += check_sections(job, "sft") + adapter_on_adapter(job)
    if job.data.streaming:
        keep_best = bool(job.early_stopping or job.train.get("load_best_model_at_end"))
        problems += check_streaming(job.data, job.train, keep_best=keep_best)
    if problems:
        raise ConfigError(*problems)


@dataclass
class Prepared:
    """What `view` shows and training starts from.

    Attributes:
        tokenizer: of the model.
        template: bound to it.
        data: the encoded rows, and what became of the others.
        attention: the implementation the model will use.
        stream: the training rows, where they are read as training goes; `data` has the first of them.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    data: SftData
    attention: str
    stream: Stream | None = None


def prepare(job: SftJob, run_dir: Path | None = None) -> Prepared:
    """Read, render and encode the rows, without loading weights.

    Args:
        job: settings that `check` passed.
        run_dir: where several processes exchange the encoded rows; None with one process.
    """
    tokenizer = load_tokenizer(job.model)
    template = load_template(job.template, tokenizer)
    bare = skeleton(job.model)
    if job.lora:
        build_lora(job.lora, bare)
    max_length = longest_row(job.data.max_length, bare.config)
    load = partial(
        load_sft, job.data, template, tokenizer, max_length=max_length, seed=job.seed, num_examples=job.samples
    )
    data = load() if run_dir is None else load_on_main_process(load, run_dir / ".encoded", SftData)
    stream = Stream(job.data, template, tokenizer, max_length=max_length, seed=job.seed) if job.data.streaming else None
    attention = job.model.attn_implementation or bare.config._attn_implementation
    return Prepared(tokenizer, template, data, attention, stream)


def view(job: SftJob) -> View:
    """What `alignkit inspect sft` shows."""
    with run_log():
        check(job)
        prepared = prepare(job)
    layout = job.data.batching
    if layout is Batching.auto:
        layout = Batching.packed if prepared.attention in _CAN_PACK else _unpacked(job)
    batch_size = int(job.train.get("per_device_train_batch_size", 8))
    return View(
        title=f"sft {job.name}",
        sets=prepared.data.sets,
        ledger=prepared.data.ledger,
        collator=_collator(prepared, layout),
        batch_size=batch_size,
        tokenizer=prepared.tokenizer,
        facts=[
            *(f"{source}: read as {format_}" for source, format_ in prepared.data.formats.items()),
            f"template {prepared.template.name}, a turn ends in {prepared.template.end_token}",
            f"batches of {batch_size} rows, {layout}: {_padding(job, prepared, layout, batch_size):.1%} padding",
            *([f"streaming: {_FIRST_ROWS}"] if job.data.streaming else []),
        ],
    )


def _layout(job: SftJob, model: PreTrainedModel) -> Batching:
    """Packed where rows stay apart on the very model that trains; packing by force must be exact too."""
    if job.data.batching not in (Batching.auto, Batching.packed):
        return job.data.batching
    attention = model.config._attn_implementation
    if attention in _CAN_PACK and packs_exactly(model, vocab_size=model.config.vocab_size):
        return Batching.packed
    if job.data.batching is Batching.packed:
        raise ConfigError(
            "data.batching=packed: packed rows would see each other in this model with "
            f"model.attn_implementation={attention}; take {_unpacked(job)}, or another implementation"
        )
    return _unpacked(job)


def _unpacked(job: SftJob) -> Batching:
    return Batching.padded if job.data.streaming else Batching.grouped


def _collator(prepared: Prepared, layout: Batching) -> Collator:
    pad_id, packed = int(prepared.tokenizer.pad_token_id), layout is Batching.packed
    return Collator(pad_id, packed=packed, one_line=prepared.attention.startswith("flash"))


def _padding(job: SftJob, prepared: Prepared, layout: Batching, batch_size: int) -> float:
    return padding_share(
        prepared.data.train.lengths, batch_size=batch_size, layout=layout, seed=job.seed, shuffle=job.data.shuffle
    )


def _trainer(
    job: SftJob, run_dir: Path, args: Any, model: PreTrainedModel, prepared: Prepared, layout: Batching
) -> SftTrainer:
    train, stream = prepared.data.train.filled(args.per_device_train_batch_size * args.world_size), prepared.stream
    num_together = args.per_device_eval_batch_size * args.world_size
    evals = {name: rows.filled(num_together).dataset for name, rows in prepared.data.evals.items()}
    order = partial(_order, seed=job.seed)
    return SftTrainer(
        model=model,
        args=args,
        train_dataset=train.dataset if stream is None else stream.dataset(),
        # Upstream puts the names of several sets into the metrics' names; a single set is simply `eval`.
        eval_dataset=evals if len(evals) > 1 else next(iter(evals.values()), None),
        processing_class=prepared.tokenizer,
        data_collator=_collator(prepared, layout),
        peft_config=build_lora(job.lora, model) if job.lora else None,
        callbacks=[
            MetricsFile(run_dir / "metrics.jsonl"),
            *([EarlyStoppingCallback(job.early_stopping)] if job.early_stopping else []),
        ],
        row_sources=train.sources if stream is None else stream.sources,
        train_order=partial(
            order, shuffle=job.data.shuffle, group=args.per_device_train_batch_size if layout is Batching.grouped else 0
        ),
        # Held-out rows are only scored: sorted by length they cost the least padding.
        eval_order=partial(order, shuffle=False, group=args.per_device_eval_batch_size),
    )


def _order(dataset: Dataset, *, seed: int, shuffle: bool, group: int) -> EpochOrder:
    num_fillers = list(dataset["row_index"]).count(FILLER)
    return EpochOrder(SftSet(dataset).lengths, seed=seed, shuffle=shuffle, group=group, num_fillers=num_fillers)


def _begin_ledger(run_dir: Path, trainer: SftTrainer, prepared: Prepared) -> None:
    path = run_dir / "rows.jsonl" if trainer.is_world_process_zero() else None
    ledger = prepared.data.ledger
    if prepared.stream is not None:
        prepared.stream.begin(path, [row for row in ledger.rows if row.set != "train"])
    elif path is not None:
        ledger.write(path)


def _facts(job: SftJob, trainer: SftTrainer, prepared: Prepared, layout: Batching) -> dict[str, str]:
    train, args = prepared.data.train, trainer.args
    per_device = args.per_device_train_batch_size
    return {
        "rows": ", ".join(f"{source} read as {format_}" for source, format_ in prepared.data.formats.items()),
        "template": f"{prepared.template.name}; a turn ends in {prepared.template.end_token}",
        **({"streaming": _FIRST_ROWS} if job.data.streaming else {}),
        "tokens": f"{sum(train.lengths):,} {'read' if job.data.streaming else 'an epoch'}, "
        f"{train.num_supervised:,} of them supervised",
        "batches": f"{per_device * args.gradient_accumulation_steps * args.world_size} rows a step; {layout}, "
        f"{_padding(job, prepared, layout, per_device):.0%} padding",
    }
