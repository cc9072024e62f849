"""What every stage does around its trainer: check, announce, answer, save."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignkit import upstream
from alignkit.config import ControlTokens, Dtype, ModelConfig, Quantization, SamplingConfig
from alignkit.data.conversation import Conversation
from alignkit.data.ledger import Ledger
from alignkit.data.masking import encode_prompt
from alignkit.data.templates import Template
from alignkit.errors import AlignkitError
from alignkit.models.load import check_model, default_dtype
from alignkit.models.save import save_model
from alignkit.models.source import is_adapter, local_folder
from alignkit.runs.directory import read_manifest
from alignkit.sampling.generate import cut_at_stop, generate
from alignkit.sampling.settings import stop_ids
from alignkit.training.arguments import check_evaluation, chosen_arguments
from alignkit.training.session import full_disk_in_words

logger = logging.getLogger(__name__)

_TOGETHER = 32  # samples answered at once


def check_sections(job: Any, stage: str) -> list[str]:
    """What is wrong with the sections that every stage that trains has, one line each."""
    held_out = job.data.eval_path is not None or job.data.eval_fraction > 0
    problems = check_evaluation(job.train, held_out=held_out, early_stopping=job.early_stopping)
    for section, (argument_class, owned) in upstream.OPEN_SECTIONS[stage].items():
        problems += upstream.problems(getattr(job, section), argument_class, section, owned)
    if not job.lora and job.model.quantization is not Quantization.none:
        problems.append("model.quantization: quantized weights cannot train, LoRA on top of them can: lora=qlora")
    try:
        check_model(job.model)
    except AlignkitError as error:
        problems += error.problems
    return problems


def adapter_on_adapter(job: Any) -> list[str]:
    """One line where a new adapter is asked for on top of one."""
    folder = local_folder(job.model.name)
    if not job.lora or folder is None or not is_adapter(folder):
        return []
    return [
        f"lora: {folder} is an adapter already: lora=none trains it further; for another one merge it into its base"
    ]


def other_template(model: ModelConfig, template: Template) -> str | None:
    """A line where a run was trained with another template than the one chosen now; None where it was not."""
    folder = local_folder(model.name)
    kept = folder / "chat_template.jinja" if folder is not None and read_manifest(folder) is not None else None
    if kept is None or not kept.is_file() or kept.read_text(encoding="utf-8").strip() == template.jinja.strip():
        return None
    return f"{folder} was trained with another template than {template.name}; template=native takes its own"


def arguments(job: Any, stage: str, run_dir: Path, *, held_out: bool, **ours: Any) -> Any:
    """Upstream's argument object from `train`, the machine, and what is ours to set."""
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_dir / "tensorboard")  # upstream's default has the clock in its name
    values = chosen_arguments(
        job.train,
        run_dir=run_dir,
        seed=job.seed,
        bf16=job.model.dtype in (Dtype.auto, Dtype.bfloat16) and default_dtype() is torch.bfloat16,
        held_out=held_out,
        keep_best=job.early_stopping is not None,
    )
    argument_class, _ = upstream.OPEN_SECTIONS[stage]["train"]
    return upstream.build(argument_class, values, "train", **ours)


def announce(ledger: Ledger, trainer: Any, job: Any, facts: Mapping[str, str], run_dir: Path) -> None:
    """One quiet screen of what will happen."""
    args = trainer.args
    num_all, num_trained = trainer.num_parameters()
    computing = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    all_facts = {
        "model": f"{job.model.name}: {num_all:,} parameters, {num_trained:,} of them trained; computing in {computing}",
        **facts,
        "steps": f"{trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]:,}",
        "run": str(run_dir),
    }
    logger.info("%s\n", ledger.table())
    for name, fact in all_facts.items():
        logger.info("%-9s %s", name, fact)


def answers(
    trainer: Any,
    prompts: Sequence[Conversation],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    sampling: SamplingConfig,
    *,
    seed: int,
) -> list[str]:
    """What the model says now to conversations that end with the user; nothing where its weights are spread."""
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if spread or not trainer.is_world_process_zero() or not prompts:
        return []
    model = trainer.accelerator.unwrap_model(trainer.model)
    completions = generate(
        model,
        [encode_prompt(row, template, tokenizer, ControlTokens.neutralise) for row in prompts],
        sampling,
        eos_ids=stop_ids(model, template.end_id),
        pad_id=int(tokenizer.pad_token_id),
        seed=seed,
        batch_size=_TOGETHER,
        decode=lambda ids: str(tokenizer.decode(ids)),
    )
    texts = [str(tokenizer.decode(done.token_ids)).removeprefix(template.response_lead) for done in completions]
    return [cut_at_stop(text, sampling) for text in texts]


def samples(
    prompts: Sequence[Conversation], wanted: Sequence[str], before: list[str], after: list[str]
) -> list[dict[str, str]]:
    """Prompts with what was wanted, and the answers before and after."""
    return [
        {"prompt": _question(prompt), "wanted": text, "before": was, "after": now}
        for prompt, text, was, now in zip(prompts, wanted, before, after, strict=False)
    ]


def _question(row: Conversation) -> str:
    last = row.messages[-1]
    return f"{last.content}\n{last.input}" if last.input else last.content


def save(
    trainer: Any, run_dir: Path, tokenizer: PreTrainedTokenizerBase, template: Template, *, end_id: int | None
) -> None:
    """Write the trained model into the run directory; every process must call this."""
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if sharded else None
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        with full_disk_in_words(run_dir):
            save_model(model, tokenizer, run_dir, jinja=template.jinja, end_id=end_id, state_dict=weights)
