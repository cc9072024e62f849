"""Answer prompts with a model or run directory, rendered by the template it was trained with."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase

from alignkit.config import ControlTokens, GenerateJob, Quantization
from alignkit.data.conversation import Conversation, Message
from alignkit.data.formats import RowError, detect_format, to_prompt
from alignkit.data.masking import encode_prompts
from alignkit.data.sources import check_sources, parse_sources, read_rows
from alignkit.data.templates import Template, load_template
from alignkit.errors import AlignkitError, ConfigError, DataError
from alignkit.models.load import check_model, load_model, load_tokenizer, num_positions
from alignkit.models.skeleton import skeleton
from alignkit.runs.log import run_log
from alignkit.sampling.generate import generate
from alignkit.sampling.settings import check as check_sampling
from alignkit.sampling.settings import stop_ids

logger = logging.getLogger(__name__)


def run(job: GenerateJob, *, prompts: Sequence[str], prompts_path: Path | None, out: Path | None) -> None:
    """Answer every prompt, to the terminal or to a file of JSON lines.

    Each line has `source`, `prompt` (the rendered text), `response`, `finish_reason`, `num_tokens` and `logprob`.

    Raises:
        ConfigError, DataError, ModelError: the user's mistake; nothing was written.
    """
    with run_log():
        _run(job, prompts, prompts_path, out)


def _run(job: GenerateJob, prompts: Sequence[str], prompts_path: Path | None, out: Path | None) -> None:
    _check(job, prompts, prompts_path, out)
    asked = [(f"--prompt {i}", Conversation((Message("user", text),))) for i, text in enumerate(prompts, start=1)]
    if prompts_path is not None:
        asked += read_prompts(prompts_path, job)
    tokenizer = load_tokenizer(job.model)
    template = load_template(job.template, tokenizer)
    ids = _encoded(asked, template, tokenizer)
    _check_lengths(asked, ids, job)
    model = load_model(job.model, tokenizer=tokenizer, seed=job.seed, trainable=False)
    if torch.accelerator.is_available() and job.model.quantization is Quantization.none:  # quantized weights are there
        torch.nn.Module.to(model, torch.accelerator.current_accelerator())
    with Progress(
        TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    ) as progress:
        bar = progress.add_task("", total=len(ids))
        completions = generate(
            model,
            ids,
            job.sampling,
            eos_ids=stop_ids(model, template.end_id),
            pad_id=int(tokenizer.pad_token_id or 0),
            seed=job.seed,
            batch_size=job.batch_size,
            on_progress=lambda done: progress.update(bar, completed=done),
        )
    lines = []
    for (source, _), prompt_ids, completion in zip(asked, ids, completions, strict=True):
        response = str(tokenizer.decode(completion.token_ids)).removeprefix(template.response_lead)
        row: dict[str, Any] = {"source": source, "prompt": tokenizer.decode(prompt_ids), "response": response}
        row |= {"finish_reason": completion.finish_reason, "num_tokens": completion.num_tokens}
        lines.append(row | {"logprob": completion.logprob})
    if out is None:
        _show(lines)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        Console(stderr=True).print(f"{len(lines)} responses in {out}", markup=False, highlight=False)


def read_prompts(path: Path, job: GenerateJob) -> list[tuple[str, Conversation]]:
    """Prompts of a data file, in any format whose responses, if it has some, are left off; `.txt` holds one a line.

    Raises:
        DataError: rows that cannot be read, together.
    """
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
        return [(f"{path}:{i}", Conversation((Message("user", line),))) for i, line in found]
    (source,) = parse_sources(str(path), setting="--prompts", format=job.format, columns=job.columns, split=None)
    rows = list(read_rows(source, limit=None))
    format_ = job.format
    if format_ == "auto":
        first = next((row.row for row in rows if isinstance(row.row, dict)), {})
        format_ = detect_format(first.keys(), first, columns=job.columns, responses=False)
    prompts, problems = [], []
    for row in rows:
        try:
            if row.problem:
                raise RowError(row.problem)
            prompts.append((row.source, to_prompt(row.row, format_, job.columns)))
        except RowError as error:
            problems.append(f"{row.source}: {error}")
    if problems:
        raise DataError(*problems)
    return prompts


def _encoded(
    asked: Sequence[tuple[str, Conversation]], template: Template, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    prompts = encode_prompts(
        [prompt for _, prompt in asked], template, tokenizer, control_tokens=ControlTokens.neutralise
    )
    refused = [f"{source}: {ids}" for (source, _), ids in zip(asked, prompts, strict=True) if isinstance(ids, str)]
    if refused:
        raise DataError(*refused)
    return [ids for ids in prompts if not isinstance(ids, str)]


def _check_lengths(asked: Sequence[tuple[str, Conversation]], ids: Sequence[list[int]], job: GenerateJob) -> None:
    longest = num_positions(skeleton(job.model).config)
    problems = [
        f"{source}: {len(prompt)} tokens, which with sampling.max_new_tokens={job.sampling.max_new_tokens} is more "
        f"than the model's {longest} positions: shorten the one or the other"
        for (source, _), prompt in zip(asked, ids, strict=True)
        if longest is not None and len(prompt) + job.sampling.max_new_tokens > longest
    ]
    if problems:
        raise DataError(*problems)


def _check(job: GenerateJob, prompts: Sequence[str], prompts_path: Path | None, out: Path | None) -> None:
    problems = check_sampling(job.sampling)
    if not prompts and prompts_path is None:
        problems.append("there is nothing to answer: give --prompt TEXT or --prompts FILE")
    problems += [f"--prompt {i} is empty" for i, text in enumerate(prompts, start=1) if not text.strip()]
    if out is not None and out.exists():
        problems.append(f"--out {out} exists already: name another file or remove it")
    elif out is not None and not next(folder for folder in out.absolute().parents if folder.exists()).is_dir():
        problems.append(f"--out {out} cannot be written: part of its path is a file")
    try:
        check_model(job.model)
    except AlignkitError as error:
        problems += error.problems
    try:
        _check_prompts(prompts_path, job)
    except AlignkitError as error:
        problems += error.problems
    if problems:
        raise ConfigError(*problems)


def _check_prompts(path: Path | None, job: GenerateJob) -> None:
    if path is None:
        return
    if path.suffix == ".txt":
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        except UnicodeDecodeError as error:
            raise DataError(f"--prompts {path}: it is not UTF-8: {error.reason} at byte {error.start}") from error
        if not text.strip():
            raise DataError(f"--prompts {path}: there is no such file, or it is empty")
        return
    check_sources(parse_sources(str(path), setting="--prompts", format=job.format, columns=job.columns, split=None))


def _show(lines: Sequence[dict[str, Any]]) -> None:
    console = Console(soft_wrap=True)
    for line in lines:
        console.print(line["prompt"], style="dim", markup=False, highlight=False, end="")
        console.print(line["response"], style="bold", markup=False, highlight=False)
        note = "" if line["finish_reason"] == "stop" else f" (cut off after {line['num_tokens']} tokens)"
        console.print(f"--{note}", style="dim", markup=False, highlight=False)
