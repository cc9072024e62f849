"""A job from its first row to its answer, on a tiny model: trained, resumed, loaded again and asked."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignkit.choices import Resume
from alignkit.config import ModelConfig
from alignkit.data.batches.batching import IGNORED
from alignkit.errors import AlignkitError, RunError, TemplateError
from alignkit.jobs import GenerateJob, StageJob
from alignkit.json_files import read_object
from alignkit.models.load import for_another_machine, load_tokenizer
from alignkit.models.reward import load_reward, scores_of
from alignkit.runs.difference import differences
from alignkit.runs.lock import hold
from alignkit.runs.log import TERMINAL
from alignkit.runs.manifest import read_manifest
from alignkit.runs.result import CHECKSUMS
from alignkit.runs.taken import give_back
from alignkit.smoke.tiny_job import tiny_job
from alignkit.terminal import in_a_line, print_json_lines


@dataclass
class Trial:
    """What was tried, in order.

    Attributes:
        stage: of the job.
        steps: name, seconds and what was found of each; the last one is that which failed, where one did.
        error: of that one.
        folder: that is kept; None where nothing is.
    """

    stage: str
    steps: list[tuple[str, float, str]] = field(default_factory=list)
    error: AlignkitError | None = None
    folder: Path | None = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is put into the list is what was found."""
        found: list[str] = []
        started = time.perf_counter()
        try:
            yield found
        finally:
            self.steps.append((name, time.perf_counter() - started, "; ".join(found)))


class _StopAfterSave(TrainerCallback):
    """Ends a run as a crash would, right behind its first checkpoint."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            raise _Stopped("the trial stops here to resume")


class _Stopped(RunError):
    """A run was ended on purpose."""


def try_out(job: StageJob, *, keep: Path | None) -> Trial:
    """Try a job; what is wrong with it is in the trial, one error for the first step that fails.

    Args:
        job: the user's.
        keep: a folder to leave everything in; None leaves nothing.
    """
    trial = Trial(job.stage, folder=keep)
    with contextlib.ExitStack() as stack:
        if keep is not None:
            stack.enter_context(hold(keep, keep.with_name(f".{keep.name}.lock")))  # the lock that merge has
            if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
                raise RunError(f"--keep {keep} is there already: name a new folder")
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alignkit-smoke-")))
        stack.callback(give_back, folder)
        for stream in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            stack.enter_context(stream(io.StringIO()))
        try:
            _try_all(trial, job, folder.absolute())
        except AlignkitError as error:
            trial.error = error
    return trial


def _try_all(trial: Trial, job: StageJob, folder: Path) -> None:
    stage = job.stage
    with trial.step("settings"), for_another_machine():
        import_module(f"alignkit.stages.{stage}.check").check_job(job)
    with trial.step("tiny model") as found:
        small = tiny_job(job, folder)
        found.append(f"{small.model.name}" if trial.folder else "of the same architecture, with the same tokenizer")
    with trial.step("rows") as found:
        found.append(_check_rows(import_module(f"alignkit.stages.{stage}.data").prepare(small), stage))
    run: Callable[..., None] = import_module(f"alignkit.stages.{stage}.run").run
    whole, resumed = folder / "whole", folder / "resumed"
    with trial.step("two steps"):
        run(small, whole)
    with trial.step("resume") as found:
        with contextlib.suppress(_Stopped):
            run(small, resumed, callbacks=[_StopAfterSave()])
        run(replace(small, resume=Resume.true), resumed)
        _check_same(whole, resumed)
        found.append("the same, bit for bit")
    with trial.step("reload and ask") as found:
        found.append(_ask(whole, small, folder / "answer.jsonl"))


def _check_rows(prepared: Any, stage: str) -> str:
    """Refuse rows of which none teaches the model to end its turn."""
    rows = prepared.data.train
    if stage == "ppo":
        return f"{len(rows):,} prompts"
    if stage == "sft":
        stops = set(prepared.template.stop_ids)
        trained = [{id for id in labels if id != IGNORED} for labels in rows.dataset["labels"]]
        if not any(labels & stops for labels in trained):
            raise TemplateError(
                f"the end of a turn, {prepared.template.end_token}, carries loss in none of {len(trained):,} rows: the "
                "model would never learn to stop; raise data.max_length, or put "
                "the end token into the part of the template that is trained"
            )
    return f"{len(rows.dataset):,} rows"


def _check_same(whole: Path, resumed: Path) -> None:
    """Refuse a resumed run that is not the uninterrupted one, bit for bit.

    Raises:
        RunError: the first figure, or the files, that differ.
    """
    found = differences(whole, read_manifest(whole) or {}, resumed, read_manifest(resumed) or {})
    mine, theirs = (read_object(folder / CHECKSUMS).get("files", {}) for folder in (whole, resumed))
    files = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    why = (
        "; a reward or a format that keeps state between calls, or draws without a seed, makes a run that cannot resume"
    )
    if found.first_step is not None:
        step, key, one, other = found.first_step
        raise RunError(f"resumed after step 1, step {step} differs: {key} is {one} and then {other}{why}")
    if files:
        raise RunError(f"resumed after step 1, the result differs: {', '.join(files)}{why}")


def _ask(run: Path, job: StageJob, out: Path) -> str:
    """Load the result as any command does: a reward model scores, a policy answers."""
    model = ModelConfig(str(run), trust_remote_code=job.model.trust_remote_code)
    if job.stage == "reward":
        tokenizer = load_tokenizer(model)
        ids = [tokenizer("a")["input_ids"] or [0]]
        (score,) = scores_of(load_reward(model, tokenizer), ids, pad_id=int(tokenizer.pad_token_id), batch_size=1)
        return f"a text scores {score:.3g}"
    from alignkit.commands.generate import run as generate

    sampling = replace(GenerateJob().sampling, max_new_tokens=8)
    generate(GenerateJob(model=model, sampling=sampling), prompts=["Hello."], prompts_path=None, out=out)
    return "a prompt is answered"


def report(trial: Trial, *, as_json: bool) -> None:
    """Print what was tried and how it went.

    Args:
        trial: the trial.
        as_json: one JSON object instead.

    Raises:
        AlignkitError: what failed.
    """
    problems = [] if trial.error is None else list(trial.error.problems)
    if as_json:
        steps = [{"name": name, "seconds": round(seconds, 2), "found": found} for name, seconds, found in trial.steps]
        facts = {"stage": trial.stage, "ok": not problems, "steps": steps, "problems": problems}
        print_json_lines([{**facts, "folder": None if trial.folder is None else str(trial.folder)}])
    else:
        for number, (name, seconds, found) in enumerate(trial.steps, 1):
            failed = bool(problems) and number == len(trial.steps)
            line = f"{'FAIL' if failed else 'ok':<5}{name:<16}{seconds:>5.1f} s  {found}".rstrip()
            TERMINAL.print(in_a_line(line), markup=False, highlight=False)
    if trial.error is not None:
        raise trial.error
