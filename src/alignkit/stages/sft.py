"""Supervised fine-tuning: from rows and a template to a trained run directory.

`run` trains; `view` shows what `run` would train on. Both begin with `check` and `prepare`, so they cannot differ.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase

from alignkit import upstream
from alignkit.config import Batching, ControlTokens, Dtype, Quantization, SftJob
from alignkit.data.batching import FILLER, Collator, EpochOrder, packs_exactly, padding_share
from alignkit.data.conversation import Conversation
from alignkit.data.dataset import NUM_FIRST, EncodedSet, SftData, check_data, load_sft, shared
from alignkit.data.inspect import View
from alignkit.data.masking import encode_prompt
from alignkit.data.streaming import Stream, check_streaming
from alignkit.data.templates import Template, load_template
from alignkit.errors import AlignkitError, ConfigError
from alignkit.models.load import check_model, default_dtype, load_model, load_tokenizer, num_positions
from alignkit.models.lora import build_lora
from alignkit.models.save import save_model
from alignkit.models.skeleton import skeleton
from alignkit.models.source import is_adapter, local_folder
from alignkit.runs.directory import lineage, open_run
from alignkit.runs.log import run_log
from alignkit.runs.report import conclude
from alignkit.sampling.generate import cut_at_stop, generate
from alignkit.sampling.settings import check as check_sampling
from alignkit.sampling.settings import stop_ids
from alignkit.training.arguments import check_evaluation, chosen_arguments
from alignkit.training.metrics import MetricsFile
from alignkit.training.session import full_disk_in_words, train
from alignkit.training.sft import SftTrainer

logger = logging.getLogger(__name__)

_LONGEST_BY_DEFAULT = 2048  # tokens: a model with 128 k positions must not take their memory unasked
_TOGETHER = 32  # samples answered at once
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
    guard = open_run(run_dir, stage="sft", record=record or asdict(job), resume=job.resume, overwrite=job.overwrite)
    with run_log() as log, guard as entry:
        if entry.finished:
            logger.info("%s is finished: there is nothing to resume, and nothing was changed", run_dir)
            return
        prepared = prepare(job, run_dir)
        model = load_model(job.model, tokenizer=prepared.tokenizer, seed=job.seed, trainable=not job.lora)
        layout = _layout(job, model)
        args = _arguments(job, run_dir, held_out=bool(prepared.data.evals))
        entry.parents = lineage(job.model.name)
        entry.begin()
        log.open(run_dir / "log.txt")
        trainer = _trainer(job, run_dir, args, model, prepared, layout)
        _begin_ledger(run_dir, trainer, prepared)
        _announce(job, run_dir, trainer, prepared, layout)
        before = _answers(job, trainer, prepared)
        train(trainer, resume=entry.resuming)
        if prepared.stream is not None and prepared.stream.ledger is not None:
            logger.info("\nread as training went:\n%s\n", prepared.stream.ledger.table())
        _save(trainer, run_dir, prepared)
        after = _answers(job, trainer, prepared)
        kept_step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
        samples = _samples(prepared, before, after)
        entry.result = conclude(run_dir, trainer.state.log_history, samples=samples, kept_step=kept_step)


def check(job: SftJob) -> None:
    """Find everything that can be known before a file is read through or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    held_out = job.data.eval_path is not None or job.data.eval_fraction > 0
    problems = check_data(job.data) + check_sampling(job.sampling)
    problems += check_evaluation(job.train, held_out=held_out, early_stopping=job.early_stopping)
    if job.data.streaming:
        keep_best = bool(job.early_stopping or job.train.get("load_best_model_at_end"))
        problems += check_streaming(job.data, job.train, keep_best=keep_best)
    for section, (argument_class, owned) in upstream.OPEN_SECTIONS["sft"].items():
        problems += upstream.problems(getattr(job, section), argument_class, section, owned)
    folder = local_folder(job.model.name)
    if job.lora and folder is not None and is_adapter(folder):
        problems.append(
            f"lora: {folder} is an adapter already: lora=none trains it further; for another one merge it into its base"
        )
    if not job.lora and job.model.quantization is not Quantization.none:
        problems.append("model.quantization: quantized weights cannot train, LoRA on top of them can: lora=qlora")
    try:
        check_model(job.model)
    except AlignkitError as error:
        problems += error.problems
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
    longest = num_positions(bare.config)
    if job.data.max_length is not None and longest is not None and job.data.max_length > longest:
        raise ConfigError(f"data.max_length is {job.data.max_length}, and the model has {longest} positions")
    max_length = job.data.max_length or min(longest or _LONGEST_BY_DEFAULT, _LONGEST_BY_DEFAULT)
    load = partial(
        load_sft, job.data, template, tokenizer, max_length=max_length, seed=job.seed, num_prompts=job.samples
    )
    data = load() if run_dir is None else shared(load, run_dir / ".encoded")
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
        sets={"train": prepared.data.train, **prepared.data.evals},
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


def _arguments(job: SftJob, run_dir: Path, *, held_out: bool) -> Any:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")  # upstream's default has the clock in its name
    values = chosen_arguments(
        job.train,
        run_dir=run_dir,
        seed=job.seed,
        bf16=job.model.dtype in (Dtype.auto, Dtype.bfloat16) and default_dtype() is torch.bfloat16,
        held_out=held_out,
        keep_best=job.early_stopping is not None,
    )
    ours = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    return upstream.build(upstream.SFT_CONFIG, values, "train", **ours)


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
    return EpochOrder(EncodedSet(dataset).lengths, seed=seed, shuffle=shuffle, group=group, num_fillers=num_fillers)


def _begin_ledger(run_dir: Path, trainer: SftTrainer, prepared: Prepared) -> None:
    path = run_dir / "rows.jsonl" if trainer.is_world_process_zero() else None
    ledger = prepared.data.ledger
    if prepared.stream is not None:
        prepared.stream.begin(path, [row for row in ledger.rows if row.set != "train"])
    elif path is not None:
        ledger.write(path)


def _announce(job: SftJob, run_dir: Path, trainer: SftTrainer, prepared: Prepared, layout: Batching) -> None:
    """One quiet screen of what will happen."""
    train, args = prepared.data.train, trainer.args
    num_all, num_trained = trainer.num_parameters()
    computing = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    per_device = args.per_device_train_batch_size
    facts = {
        "rows": ", ".join(f"{source} read as {format_}" for source, format_ in prepared.data.formats.items()),
        "model": f"{job.model.name}: {num_all:,} parameters, {num_trained:,} of them trained; computing in {computing}",
        "template": f"{prepared.template.name}; a turn ends in {prepared.template.end_token}",
        **({"streaming": _FIRST_ROWS} if job.data.streaming else {}),
        "tokens": f"{sum(train.lengths):,} {'read' if job.data.streaming else 'an epoch'}, "
        f"{train.num_supervised:,} of them supervised",
        "batches": f"{per_device * args.gradient_accumulation_steps * args.world_size} rows a step; {layout}, "
        f"{_padding(job, prepared, layout, per_device):.0%} padding",
        "steps": f"{trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]:,}",
        "run": str(run_dir),
    }
    logger.info("%s\n", prepared.data.ledger.table())
    for name, fact in facts.items():
        logger.info("%-9s %s", name, fact)


def _save(trainer: SftTrainer, run_dir: Path, prepared: Prepared) -> None:
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        template = prepared.template
        with full_disk_in_words(run_dir):
            save_model(
                model, prepared.tokenizer, run_dir, jinja=template.jinja, end_id=template.end_id, state_dict=weights
            )


def _samples(prepared: Prepared, before: list[str], after: list[str]) -> list[dict[str, str]]:
    rows = zip(prepared.data.prompts, before, after, strict=False)
    return [
        {"prompt": _question(row), "wanted": row.messages[-1].content, "before": was, "after": now}
        for row, was, now in rows
    ]


def _question(row: Conversation) -> str:
    last = row.asked().messages[-1]
    return f"{last.content}\n{last.input}" if last.input else last.content


def _answers(job: SftJob, trainer: SftTrainer, prepared: Prepared) -> list[str]:
    """What the model says now to the first held-out prompts; nothing where the weights are spread over processes."""
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if spread or not trainer.is_world_process_zero() or not prepared.data.prompts:
        return []
    tokenizer, template = prepared.tokenizer, prepared.template
    model = trainer.accelerator.unwrap_model(trainer.model)
    completions = generate(
        model,
        [encode_prompt(row.asked(), template, tokenizer, ControlTokens.neutralise) for row in prepared.data.prompts],
        job.sampling,
        eos_ids=stop_ids(model, template.end_id),
        pad_id=int(tokenizer.pad_token_id),
        seed=job.seed,
        batch_size=_TOGETHER,
        decode=lambda ids: str(tokenizer.decode(ids)),
    )
    texts = [str(tokenizer.decode(done.token_ids)).removeprefix(template.response_lead) for done in completions]
    return [cut_at_stop(text, job.sampling) for text in texts]
