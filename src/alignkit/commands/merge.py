"""An adapter added into the weights it sits on, and proof that nothing else changed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from alignkit.config import Dtype, MergeJob, ModelConfig
from alignkit.errors import AlignkitError, ConfigError, ModelError
from alignkit.evaluate.likelihood import Row, token_logprobs
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.trained import example_rows
from alignkit.models.load import check_model, load_model
from alignkit.models.save import save_model
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource
from alignkit.runs.directory import Run, lineage
from alignkit.runs.log import run_log

logger = logging.getLogger(__name__)

# Above what rounding does: of the merged weights, to float32 or to 8 or 11 significant bits, and of the arithmetic.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.25, torch.float16: 0.05}
# Float32 arithmetic hides what the rounding of float32 weights does: SmolLM2 135M is 3e-5 from itself in float64, where
# an adapter on it is 7e-6 from the merged model. Beside weights of fewer bits it is nothing.
ARITHMETIC = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}
_BATCH_SIZE = 8


def run(job: MergeJob, *, out: Path) -> None:
    """Write a plain model folder that says what the adapter says, or nothing.

    The sums are made in float32 and rounded once. What was written is loaded again and compared, in an arithmetic finer
    than its weights, on the prompts and answers of the run, or on rows that ship with alignkit where it has none.

    Raises:
        ConfigError, ModelError: the user's mistake, or a difference past the bound; `out` is not there then.
    """
    _check(job, out)
    with run_log():
        exact = replace(job.model, dtype=Dtype.float32)
        policy = ServedModel.of(exact, job.template).load(seed=0)
        rows = example_rows(policy)
        dtype = merged_dtype(job.model)
        arithmetic = ARITHMETIC[dtype]
        before = _logprobs(policy.weights, rows, policy.pad_id, arithmetic)
        merged = _merged(policy)
        torch.nn.Module.to(merged, dtype)
        aside = out.with_name(f".{out.name}.unchecked")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            entry = Run(aside, "merge", asdict(job), parents=lineage(job.model.name))
            entry.begin()
            save_model(merged, policy.tokenizer, aside, jinja=policy.template.jinja, end_id=policy.template.end_id)
            policy.unload()
            written = load_model(replace(exact, name=str(aside)), tokenizer=policy.tokenizer, seed=0, trainable=False)
            difference = _largest(before, _logprobs(written, rows, policy.pad_id, arithmetic))
            bound = job.max_difference if job.max_difference is not None else BOUNDS[dtype]
            figures = (
                f"{difference:.2e} nats over {sum(map(len, before)):,} tokens of {len(rows)} rows "
                f"(bound {bound:g}, {_plain(dtype)} weights in {_plain(arithmetic)} arithmetic)"
            )
            if not difference <= bound:
                raise ModelError(
                    f"max_difference: the merged model differs from the adapter by {figures}; nothing was written: "
                    "raise the bound if that is good enough, or take model.dtype=float32"
                )
            entry.result = {"largest_difference": difference}
            entry.write("finished")
            aside.replace(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        logger.info("largest difference  %s", figures)
        logger.info("model               %s", out)


def compare_merged(policy: ServedModel, rows: Sequence[Row], arithmetic: torch.dtype) -> float:
    """How far a loaded adapter's log-probabilities move, at most, when it is merged in memory; it is used up."""
    before = _logprobs(policy.weights, rows, policy.pad_id, arithmetic)
    return _largest(before, _logprobs(_merged(policy), rows, policy.pad_id, arithmetic))


def merged_dtype(model: ModelConfig) -> torch.dtype:
    """What was asked for, or what the base is stored in."""
    if model.dtype is not Dtype.auto:
        return {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16, Dtype.float16: torch.float16}[model.dtype]
    stored: Any = skeleton(model).config.dtype
    return stored if stored in BOUNDS else torch.float32


def _merged(policy: ServedModel) -> PreTrainedModel:
    adapted = policy.weights
    assert isinstance(adapted, PeftModel)
    plain: PreTrainedModel = adapted.merge_and_unload()
    return plain


def _logprobs(model: PreTrainedModel, rows: Sequence[Row], pad_id: int, arithmetic: torch.dtype) -> list[torch.Tensor]:
    """The float32 weights come back as they were: the wider dtype holds each of them."""
    if model.device.type == "mps":  # which has no float64
        torch.nn.Module.to(model, "cpu")
    torch.nn.Module.to(model, arithmetic)
    found = token_logprobs(model, rows, pad_id=pad_id, batch_size=_BATCH_SIZE)
    torch.nn.Module.to(model, torch.float32)
    return found


def _largest(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    return float((torch.cat(list(before)) - torch.cat(list(after))).abs().max())


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(job: MergeJob, out: Path) -> None:
    problems = []
    try:
        check_model(job.model)
        if not ModelSource.of(job.model).is_adapter:
            problems.append(f"model.name: {job.model.name} is no adapter: there is nothing to merge")
    except AlignkitError as error:
        problems += error.problems
    if out.exists():
        problems.append(f"{out} exists already: name another folder or remove it")
    elif not next(parent for parent in out.absolute().parents if parent.exists()).is_dir():
        problems.append(f"{out} cannot be written: part of its path is a file")
    if problems:
        raise ConfigError(*problems)
