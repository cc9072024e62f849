"""Answer prompts with a model or run directory, rendered by the template it was trained with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, Interrupted, StopSignal
from alignkit.evaluate.answers import AnswerFile, check_answer_file, fingerprint, weights_mark
from alignkit.evaluate.arguments import check_section
from alignkit.evaluate.progress import progress_bar
from alignkit.evaluate.prompts import Prompts, check_prompts, read_prompts
from alignkit.evaluate.served_model import ServedModel, sample_keys
from alignkit.jobs import GenerateJob
from alignkit.models.memory import explain_out_of_memory
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import run_log
from alignkit.runs.manifest import flat
from alignkit.runs.output import outputs
from alignkit.sampling.settings import check_sampling
from alignkit.terminal import printable

_LOWER = "lower batch_size or sampling.max_new_tokens"
_BATCHES_AT_ONCE = 16  # sorted by length among themselves, then written in the order of the prompts


def run(
    job: GenerateJob,
    *,
    prompts: Sequence[str],
    prompts_path: Path | None,
    out: Path | None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Answer every prompt, to the terminal or to a file of JSON lines, which is continued where it stopped.

    Each line has `source`, `sample` (0, 1, … of this prompt), `prompt` (the rendered text), `response`,
    `finish_reason`, `num_prompt_tokens`, `num_tokens` (both without the end token) and `logprob`.

    Args:
        job: the settings.
        prompts: texts.
        prompts_path: a file of further ones.
        out: the file.
        record: the settings as they were given, interpolations unresolved: as such they are written beside `out`.

    Raises:
        ConfigError, DataError, ModelError: the user's mistake; nothing was written.
        Interrupted: Ctrl-C; what was answered is in the file.
    """
    with outputs(out=out), run_log(), explain_out_of_memory(_LOWER):
        _check(job, prompts, prompts_path, out)
        found = read_prompts(prompts, prompts_path, format=job.format, columns=job.columns)
        policy = ServedModel.of(job.model, job.template)
        rows = policy.encode(found)
        policy.check_lengths(found, rows, job.sampling)
        file = None if out is None else AnswerFile(out, _settings(record or asdict(job), job, rows))
        if file is not None and file.num_done == len(rows) * job.num_samples:
            _say(f"{file.path} is complete: it has all {file.num_done} responses")
            return
        policy.load(seed=job.seed)
        try:
            _answer(job, policy, found, rows, file)
        except (KeyboardInterrupt, StopSignal) as stop:
            if file is None:
                raise
            number = stop.number if isinstance(stop, StopSignal) else 2
            said = f"{file.num_done} responses are in {out}: the same command continues it"
            raise Interrupted(number, said) from None


def _answer(
    job: GenerateJob, policy: ServedModel, found: Prompts, rows: list[list[int]], file: AnswerFile | None
) -> None:
    places = [row for row in range(len(rows)) for _ in range(job.num_samples)]
    started, num_tokens, num_before = time.perf_counter(), 0, file.num_done if file else 0
    with progress_bar("generating", len(places), num_done=num_before) as on_progress:
        for lines in _chunks(job, policy, found, rows, places, num_before, on_progress):
            num_tokens += sum(line["num_tokens"] for line in lines)
            if file is None:
                _show(lines)
            else:
                file.append(lines)
    seconds = time.perf_counter() - started
    if file is not None:
        speed = f"{num_tokens:,} tokens in {seconds:.1f} s, {num_tokens / seconds:,.0f} tokens/s"
        _say(f"{file.num_done} responses in {file.path}; {speed}")


def _chunks(
    job: GenerateJob,
    policy: ServedModel,
    found: Prompts,
    rows: list[list[int]],
    places: list[int],
    num_before: int,
    on_progress: Callable[[int], None],
) -> Iterator[list[dict[str, Any]]]:
    keys, size = sample_keys(len(rows), job.num_samples), job.batch_size * _BATCHES_AT_ONCE
    for start in range(num_before, len(places), size):
        chunk = places[start : start + size]
        completions = policy.complete(
            [rows[row] for row in chunk],
            job.sampling,
            seed=job.seed,
            batch_size=1 if job.deterministic_rows else job.batch_size,
            keys=keys[start : start + size],
            on_progress=partial(_told, on_progress, start),
        )
        yield [
            {
                "source": found[row][0],
                "sample": at % job.num_samples,
                "prompt": policy.decode(rows[row]),
                "response": policy.text(completion, job.sampling),
                "finish_reason": completion.finish_reason,
                "num_prompt_tokens": len(rows[row]),
                "num_tokens": completion.num_tokens,
                "logprob": completion.logprob,
            }
            for at, row, completion in zip(range(start, len(places)), chunk, completions, strict=False)
        ]


def _told(on_progress: Callable[[int], None], num_before: int, num_done: int) -> None:
    on_progress(num_before + num_done)


def _settings(record: Mapping[str, Any], job: GenerateJob, rows: list[list[int]]) -> dict[str, Any]:
    """List what determines the answers: not the batch size, which only changes rounding, nor the format of prompts."""
    settings = dict(flat(record))
    for key in ("batch_size", "format", "columns"):
        settings.pop(key, None)
    return settings | {"prompts": fingerprint(rows), "weights": weights_mark(job.model.name)}


def _check(job: GenerateJob, prompts: Sequence[str], prompts_path: Path | None, out: Path | None) -> None:
    problems = check_sampling(job.sampling)
    prompt_problems = check_prompts(prompts, prompts_path, format=job.format, columns=job.columns)
    problems += check_answer_file(out) + check_section(job.model)
    if problems := problems + prompt_problems:
        raise ConfigError(*problems)


def _show(lines: Sequence[dict[str, Any]]) -> None:
    console = SafeConsole()
    for line in lines:
        console.print(printable(line["prompt"]), style="dim", markup=False, highlight=False, end="")
        console.print(printable(line["response"]), style="bold", markup=False, highlight=False)
        note = f" (cut off after {line['num_tokens']} tokens)" if line["finish_reason"] == "length" else ""
        console.print(f"--{note}", style="dim", markup=False, highlight=False)


def _say(text: str) -> None:
    SafeConsole(stderr=True).print(text, markup=False, highlight=False)
