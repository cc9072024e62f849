"""The sections every stage has, checked and handed to upstream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alignkit import upstream
from alignkit.choices import Dtype, Quantization
from alignkit.config import ModelConfig
from alignkit.data.encode.templates import Template
from alignkit.errors import AlignkitError
from alignkit.jobs import StageJob
from alignkit.models.load import check_model, default_dtype
from alignkit.models.source import ModelSource
from alignkit.runs.manifest import read_manifest
from alignkit.runs.template import forms_mismatch, kwargs_mismatch
from alignkit.training.arguments import (
    check_evaluation,
    check_report_to,
    chosen_arguments,
    interval_strategies,
    write_as_given,
)
from alignkit.training.sharding import check_sharding
from alignkit.training.unused_arguments import unused_arguments

_STARTS_ELSEWHERE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # a part of the base goes into the adapter


def check_sections(job: StageJob, stage: str) -> list[str]:
    """List what is wrong with the sections that all stages have, one line each."""
    held_out = job.data.eval_path is not None or job.data.eval_fraction > 0
    keep_best = stage == "ppo" and job.train.get("eval_strategy") != "no"
    keep_best = keep_best and job.train.get("load_best_model_at_end") is not False
    problems = check_evaluation(job.train, held_out=held_out, early_stopping=job.early_stopping, keep_best=keep_best)
    problems += _unused(job, held_out=held_out, keep_best=keep_best, in_updates=stage == "ppo")
    problems += check_report_to(job.train)
    for section, (argument_class, owned) in upstream.OPEN_SECTIONS[stage].items():
        problems += upstream.problems(getattr(job, section), argument_class, section, owned)
    problems += upstream.idle_layers(job.lora)
    problems += check_sharding(job.train, job.model.quantization)
    if not job.lora and job.model.quantization is not Quantization.none:
        problems.append("model.quantization: quantized weights cannot train, LoRA on top of them can: lora=qlora")
    try:
        check_model(job.model)
    except AlignkitError as error:
        problems += error.problems
    return problems


def _unused(job: StageJob, *, held_out: bool, keep_best: bool, in_updates: bool) -> list[str]:
    """List the arguments of the trainer that have no effect beside others, one line each."""
    keep_best = held_out and (keep_best or bool(job.early_stopping or job.train.get("load_best_model_at_end")))
    strategies = interval_strategies(job.train, held_out=held_out, keep_best=keep_best, in_updates=in_updates)
    without_rows = () if held_out else ("eval_steps", "eval_delay")  # `check_evaluation` tells these
    given = {key: value for key, value in job.train.items() if key not in without_rows}
    return unused_arguments(given, strategies, keep_best=keep_best)


def check_adapter_stacking(job: StageJob) -> list[str]:
    """Refuse a new adapter on top of one, in one line; an empty list where there is nothing to refuse."""
    source = ModelSource.of(job.model)
    if not job.lora or not source.is_adapter:
        return []
    return [
        f"lora: {source.folder} is an adapter already: lora=none trains it further; for another one merge it into its "
        "base"
    ]


def check_base_stays(job: StageJob) -> list[str]:
    """List what keeps the base without a fresh adapter from being the reference: it must stay as it is.

    And the adapter must start as nothing.
    """
    why = "the base without its adapter is the reference, and must be what the policy started as; leave it out"
    init, bias = job.lora.get("init_lora_weights", True), job.lora.get("bias", "none")
    problems = []
    if init is False or str(init).split("_niter")[0] in _STARTS_ELSEWHERE:
        problems.append(f"lora.init_lora_weights={'false' if init is False else init}: {why}")
    if bias != "none":
        problems.append(f"lora.bias={bias}: {why}")
    return problems


def template_mismatches(job: StageJob, template: Template) -> list[str]:
    """List what the run that a job starts from was trained with and the job has not: a template, arguments, forms."""
    folder = ModelSource.of(job.model).folder
    differing = (kwargs_mismatch(folder, job.template), forms_mismatch(folder, job.data))
    return [*filter(None, (_template_mismatch(job.model, template), *differing))]


def _template_mismatch(model: ModelConfig, template: Template) -> str | None:
    folder = ModelSource.of(model).folder
    kept = folder / "chat_template.jinja" if folder is not None and read_manifest(folder) is not None else None
    if kept is None or not kept.is_file() or kept.read_text(encoding="utf-8").strip() == template.jinja.strip():
        return None
    return f"{folder} was trained with another template than {template.name}; template=native takes its own"


def build_arguments(
    job: StageJob, stage: str, run_dir: Path, *, record: Mapping[str, Any], held_out: bool, **ours: Any
) -> Any:
    """Build upstream's argument object from `train`, the machine, and what is ours to set.

    Args:
        job: of the stage.
        stage: its name.
        run_dir: of this run.
        record: the settings as given, interpolations unresolved: as such they are written out.
        held_out: there are rows to evaluate on.
        **ours: arguments that are not the user's.
    """
    values = chosen_arguments(
        job.train,
        run_dir=run_dir,
        seed=job.seed,
        bf16=job.model.dtype in (Dtype.auto, Dtype.bfloat16) and default_dtype() is torch.bfloat16,
        held_out=held_out,
        keep_best=job.early_stopping is not None,
    )
    argument_class, _ = upstream.OPEN_SECTIONS[stage]["train"]
    args = upstream.build(argument_class, values, "train", **ours)
    given = record["train"]
    write_as_given(args, given if isinstance(given, Mapping) else dict.fromkeys(job.train, given))
    return args
