"""Answer prompts with a model or run directory, rendered by the template it was trained with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from alignkit.choices import EngineName
from alignkit.data.encode.replies import ReplyReader, reply_spec
from alignkit.engine.check import check_engine
from alignkit.errors import ConfigError, Interrupted, StopSignal
from alignkit.evaluate.answers import AnswerFile, check_answer_file, fingerprint, weights_mark
from alignkit.evaluate.arguments import check_section
from alignkit.evaluate.engine import answering
from alignkit.evaluate.kept_columns import kept_prompt_columns
from alignkit.evaluate.progress import progress_bar
from alignkit.evaluate.prompts import Prompts, check_prompts, read_prompts
from alignkit.evaluate.served_model import ServedModel, sample_keys
from alignkit.evaluate.shown_reply import ShownReply
from alignkit.evaluate.tools_file import Tools, check_tools, read_tools_file, with_tools
from alignkit.jobs import GenerateJob
from alignkit.models.memory import explain_out_of_memory
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.manifest import flat
from alignkit.runs.output import outputs
from alignkit.sampling.settings import check_sampling
from alignkit.terminal import printable

Answer: TypeAlias = tuple[dict[str, Any], str]  # a line of the file, and all that the model wrote

_LOWER = "lower batch_size or sampling.max_new_tokens"
_BATCHES_AT_ONCE = 16  # sorted by length among themselves, then written in the order of the prompts


def run(
    job: GenerateJob,
    *,
    prompts: Sequence[str],
    prompts_path: Path | None,
    out: Path | None,
    tools_path: Path | None = None,
    hide_reasoning: bool = False,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Answer every prompt, to the terminal or to a file of JSON lines, which is continued where it stopped.

    Each line has `source`, `sample` (0, 1, … of this prompt), `prompt` (the rendered text), `response`,
    `finish_reason`, `num_prompt_tokens`, `num_tokens` (both without the end token) and `logprob`. An answer of servers
    has `engine` too, and its `logprob` is of the distribution that they drew from.

    Args:
        job: the settings.
        prompts: texts.
        prompts_path: a file of further ones.
        out: the file.
        tools_path: a file of tools for the prompts that have none of their own.
        hide_reasoning: do not show, on the terminal, what the model thinks before its answer.
        record: the settings as they were given, interpolations unresolved: as such they are written beside `out`.

    Raises:
        ConfigError, DataError, ModelError: the user's mistake; nothing was written.
        Interrupted: Ctrl-C; what was answered is in the file.
    """
    with outputs(out=out), run_log(ASIDE), explain_out_of_memory(_LOWER):
        tools = _check(job, prompts, prompts_path, out, tools_path, hide_reasoning=hide_reasoning)
        columns = job.columns or kept_prompt_columns(prompts_path, [job.model.name], format=job.format)
        found = read_prompts(prompts, prompts_path, format=job.format, columns=columns)
        found = with_tools(found, tools, tools_path)
        policy = ServedModel.of(job.model, job.template, chosen=job.data)
        check_tools(policy, tools, tools_path)
        rows = policy.encode(found)
        policy.check_lengths(found, rows, job.sampling)
        file = None if out is None else AnswerFile(out, _settings(record or asdict(job), job, rows))
        if file is not None and file.num_done == len(rows) * job.num_samples:
            _say(f"{file.path} is complete: it has all {file.num_done} responses")
            return
        write = partial(_append, file) if file else _Terminal(policy, found, hide_reasoning=hide_reasoning).show
        if job.engine.name is EngineName.local:
            policy.load(seed=job.seed)
        try:
            with _kept(file), answering(job.engine, policy, rows, job.sampling, seed=job.seed) as engine:
                _answer(job, policy, found, rows, file, write, {"engine": engine} if engine else {})
        except (KeyboardInterrupt, StopSignal) as stop:
            if file is None:
                raise
            number = stop.number if isinstance(stop, StopSignal) else 2
            raise Interrupted(number, _continued(file)) from None


def _kept(file: AnswerFile | None) -> AbstractContextManager[None]:
    """Say how a file goes on where memory runs out."""
    if file is None:
        return nullcontext()
    return explain_out_of_memory(_LOWER, then=lambda: f"; {_continued(file)} with another batch_size")


def _continued(file: AnswerFile) -> str:
    return f"{file.num_done} responses are in {file.path}: the same command continues it"


def _answer(
    job: GenerateJob,
    policy: ServedModel,
    found: Prompts,
    rows: list[list[int]],
    file: AnswerFile | None,
    write: Callable[[list[Answer]], None],
    mark: Mapping[str, str],
) -> None:
    places = [row for row in range(len(rows)) for _ in range(job.num_samples)]
    started, num_tokens, num_before = time.perf_counter(), 0, file.num_done if file else 0
    with progress_bar("generating", len(places), num_done=num_before) as on_progress:
        for answers in _chunks(job, policy, found, rows, places, num_before, on_progress, mark):
            num_tokens += sum(line["num_tokens"] for line, _ in answers)
            write(answers)
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
    mark: Mapping[str, str],
) -> Iterator[list[Answer]]:
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
            (
                {
                    "source": found[row][0],
                    "sample": at % job.num_samples,
                    "prompt": policy.decode(rows[row]),
                    "response": policy.text(completion, job.sampling),
                    "finish_reason": completion.finish_reason,
                    "num_prompt_tokens": len(rows[row]),
                    "num_tokens": completion.num_tokens,
                    "logprob": completion.logprob,
                    **mark,
                },
                policy.reply(completion, job.sampling),
            )
            for at, row, completion in zip(range(start, len(places)), chunk, completions, strict=False)
        ]


def _told(on_progress: Callable[[int], None], num_before: int, num_done: int) -> None:
    on_progress(num_before + num_done)


def _settings(record: Mapping[str, Any], job: GenerateJob, rows: list[list[int]]) -> dict[str, Any]:
    """List what determines the answers: not the batch size, which only changes rounding, nor the format of prompts."""
    settings = dict(flat(record))
    for key in ("batch_size", "format", "columns", "engine.servers", "engine.timeout"):
        settings.pop(key, None)
    return settings | {"prompts": fingerprint(rows), "weights": weights_mark(job.model.name)}


def _check(
    job: GenerateJob,
    prompts: Sequence[str],
    prompts_path: Path | None,
    out: Path | None,
    tools_path: Path | None,
    *,
    hide_reasoning: bool,
) -> Tools:
    problems, tools = check_sampling(job.sampling), Tools()
    prompt_problems = check_prompts(prompts, prompts_path, format=job.format, columns=job.columns)
    problems += check_answer_file(out) + check_section(job.model) + check_engine(job.engine)
    if job.engine.name is EngineName.vllm and job.deterministic_rows:
        problems.append("deterministic_rows=true with engine.name=vllm: servers batch as they like; leave it out")
    if hide_reasoning and out is not None:
        problems.append("--hide-reasoning has no effect on --out, which has the whole responses: leave it out")
    try:
        tools = read_tools_file(tools_path)
    except ConfigError as error:
        problems += error.problems
    if problems := problems + prompt_problems:
        raise ConfigError(*problems)
    return tools


def _append(file: AnswerFile, answers: Sequence[Answer]) -> None:
    file.append([line for line, _ in answers])


class _Terminal:
    """Shows answers: prompts dimmed, reasoning and calls as such where the template has forms for them."""

    def __init__(self, policy: ServedModel, found: Prompts, *, hide_reasoning: bool) -> None:
        self._spec, self._hide_reasoning = reply_spec(policy.reply_form), hide_reasoning
        self._tools = {source: prompt.tools for source, prompt in found}

    def show(self, answers: Sequence[Answer]) -> None:
        console = SafeConsole()
        for line, reply in answers:
            console.print(printable(line["prompt"]), style="dim", markup=False, highlight=False, end="")
            shown = ShownReply(console, words="bold", hide_reasoning=self._hide_reasoning)
            reader = ReplyReader(self._spec, line["prompt"], self._tools[line["source"]])
            for piece in [*reader.feed(reply if reader.knows_parts else line["response"]), *reader.finish()[1]]:
                shown.add(piece)
            note = f" (cut off after {line['num_tokens']} tokens)" if line["finish_reason"] == "length" else ""
            console.print(f"\n--{note}", style="dim", markup=False, highlight=False)


def _say(text: str) -> None:
    SafeConsole(stderr=True).print(text, markup=False, highlight=False)
