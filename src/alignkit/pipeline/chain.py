"""The steps of a pipeline in their order, each in a process of its own.

So a step has all memory for itself, leaves no state to the next one, and computes what it would compute alone.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, ConfigError, Interrupted, RunError, StopSignal
from alignkit.evaluate.table import format_table
from alignkit.json_files import read_object
from alignkit.pages.report import keep_report
from alignkit.pipeline.check import check_steps, compose_all
from alignkit.pipeline.composed import Composed
from alignkit.pipeline.decision import Action, Decision, check_taken, decide
from alignkit.pipeline.file import Pipeline
from alignkit.runs.given import mask_words
from alignkit.runs.lock import LOCK, hold
from alignkit.runs.log import TERMINAL
from alignkit.runs.manifest import PIPELINE, read_manifest

FORMAT = 1
_DOES = {Action.run: "runs", Action.resume: "goes on", Action.skip: "is skipped"}
_WOULD = {Action.run: "would run", Action.resume: "would go on", Action.skip: "would be skipped"}


@dataclass
class Chain:
    """A pipeline, and which of its steps are meant.

    Attributes:
        pipeline: the steps as they are written.
        steps: all of them, composed.
        chosen: those that are looked at.
        option: `--from` or `--only`, with which they run though nothing has changed; empty without one.
    """

    pipeline: Pipeline
    steps: Mapping[str, Composed]
    chosen: Sequence[str]
    option: str = ""

    @classmethod
    def of(cls, pipeline: Pipeline, *, start: str | None = None, only: str | None = None) -> Chain:
        """Compose every step, and choose.

        Args:
            pipeline: its steps.
            start: run from this step on.
            only: run this step.

        Raises:
            AlignkitError: one line for each mistake, in whichever step; or a step that is left out has not finished.
        """
        if start and only:
            raise ConfigError("--from runs a step and those after it, --only one step alone: give one of them")
        names = [step.name for step in pipeline.steps]
        if start:
            names = names[names.index(pipeline.step(start, "--from").name) :]
        if only:
            names = [pipeline.step(only, "--only").name]
        _check_record(pipeline.folder)
        steps = compose_all(pipeline)
        option = "--from" if start else "--only" if only else ""
        for name in names:
            for other in steps[name].refers:
                if other not in names:
                    check_taken(steps[other], by=name, folder=steps[other].folder, option=option)
        return cls(pipeline, steps, names, option)

    def plan(self) -> dict[str, Decision]:
        """Decide for each chosen step as things are now: a step after one that runs would run, too.

        Raises:
            AlignkitError: a folder cannot be used.
        """
        plan: dict[str, Decision] = {}
        for name in self.chosen:
            changing = [other for other, decision in plan.items() if decision.action is not Action.skip]
            plan[name] = decide(self.steps[name], changing=changing, again=bool(self.option))
        return plan

    def outdated(self) -> dict[str, Decision]:
        """Decide for each step that is left out and that a chosen one builds on; return those that would run."""
        below = list(self.chosen)
        for name in below:
            below += [other for other in self.steps[name].refers if other not in below]
        found: dict[str, Decision] = {}
        for name, composed in self.steps.items():
            if name in below and name not in self.chosen:
                decision = decide(composed, changing=list(found))
                found |= {} if decision.action is Action.skip else {name: decision}
        return found

    def check(self, plan: Mapping[str, Decision]) -> None:
        """Check what is going to run.

        Raises:
            ConfigError: one line for each problem of any step.
        """
        to_run = [name for name, decision in plan.items() if decision.action is not Action.skip]
        if to_run:
            check_steps(self.steps, to_run)


def show_plan(chain: Chain, *, as_json: bool) -> list[dict[str, Any]]:
    """Print what each step would do and why, and check what would run.

    Returns:
        The same, an object for each step; before them those that are taken as they are, and would run.
    """
    plan, outdated = chain.plan(), chain.outdated()
    if not as_json:
        _say_outdated(chain, outdated)
        for name, decision in plan.items():
            _say(f"{name} {_WOULD[decision.action]}: {decision}")
    chain.check(plan)
    taken = [
        {"step": name, "does": "take", "would": str(decision.action), "why": list(decision.reasons)}
        for name, decision in outdated.items()
    ]
    return taken + [
        {"step": name, "does": str(decision.action), "why": list(decision.reasons)} for name, decision in plan.items()
    ]


def run_chain(chain: Chain) -> dict[str, Any]:
    """Run what has to run, and skip what has not changed since it ran.

    Returns:
        The record of the chain.

    Raises:
        AlignkitError: a step failed or was stopped; the same command goes on.
    """
    chain.check(chain.plan())
    _say_outdated(chain, chain.outdated())
    folder = chain.pipeline.folder
    with hold(folder, folder / LOCK), _Record.kept(chain) as record:
        for name in chain.chosen:
            decision = decide(chain.steps[name], again=bool(chain.option))
            _say(f"{name} {_DOES[decision.action]}: {decision}")
            with record.step(name, decision):
                if decision.action is not Action.skip:
                    _run(chain, name, decision.action)
        _say(format_table(list(record.steps), [_columns(step) for step in record.steps.values()]))
    return {"folder": str(folder), **record.content()}


def _say_outdated(chain: Chain, outdated: Mapping[str, Decision]) -> None:
    for name, decision in outdated.items():
        _say(f"{name} is taken as it is; without {chain.option} it {_WOULD[decision.action]}: {decision}")


def _columns(step: Mapping[str, Any]) -> dict[str, str]:
    seconds = step.get("seconds")
    return {
        "what": step["runs"],
        "done": step["did"],
        "seconds": "–" if seconds is None else f"{seconds:,.1f}",
        "folder": step["folder"],
    }


def _run(chain: Chain, name: str, action: Action) -> None:
    """Run a step in a process of its own.

    Raises:
        AlignkitError: it did not end well; what was wrong it has said itself.
    """
    pipeline, composed = chain.pipeline, chain.steps[name]
    words = [*pipeline.words]
    if composed.step.is_stage and action is Action.resume:
        words.append(f"{name}.resume=true")
    elif composed.step.is_stage and read_manifest(composed.folder) is not None:
        words.append(f"{name}.overwrite=true")
    command = [sys.executable, "-m", "alignkit", "run", *words, "--step", name, "--until-closed"]
    command += ["--config-dir", str(pipeline.config_dir)] if pipeline.config_dir else []
    sys.stdout.flush()
    status, number = _wait_for(command)
    if number:
        raise Interrupted(
            number, f"{signal.Signals(number).name}: stopped in the step {name}; the same command goes on"
        )
    if status:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else "ended with an error"
        error = AlignkitError(f"the step {name} {how}; the same command goes on")
        error.exit_status = 128 - status if status < 0 else status
        raise error
    if (read_manifest(composed.folder) or {}).get("status") != "finished":
        raise RunError(f"the step {name} ended, and {composed.folder} is no finished run")


def _wait_for(command: Sequence[str]) -> tuple[int, int]:
    """Run a command to its end, and pass signals on: its exit status, and the signal that was passed on.

    It has a session of its own: Ctrl-C in a terminal reaches it once, from here. It ends when its input does.
    """
    number = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        while True:
            try:
                return process.wait(), number
            except (KeyboardInterrupt, StopSignal) as signaled:
                number = signaled.number if isinstance(signaled, StopSignal) else int(signal.SIGINT)
                process.send_signal(number)


def _check_record(folder: Path) -> None:
    """Refuse the record of a later alignkit.

    Raises:
        RunError: its format is not known here.
    """
    path = folder / PIPELINE
    number = read_object(path).get("format") if path.is_file() else FORMAT
    if not isinstance(number, int) or number > FORMAT:
        raise RunError(
            f"{path} was written by a later alignkit: it has format {number}, and this one knows up to {FORMAT}"
        )


@dataclass
class _Record:
    """`pipeline.json`: which step is where, and what became of each."""

    chain: Chain
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: str = "running"
    error: str = ""
    started: str = ""

    @classmethod
    @contextlib.contextmanager
    def kept(cls, chain: Chain) -> Iterator[_Record]:
        record = cls(chain, started=_now())
        for name, composed in chain.steps.items():
            record.steps[name] = {"runs": composed.step.kind, "folder": str(composed.folder), "did": "–"}
        record.write()
        try:
            yield record
        except BaseException as error:
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt, StopSignal))
            record.status, record.error = "interrupted" if stopped else "failed", str(error)
            with contextlib.suppress(OSError):  # a full disk may be what ended it
                record.write()
            raise
        record.status = "finished"
        record.write()

    @contextlib.contextmanager
    def step(self, name: str, decision: Decision) -> Iterator[None]:
        began = time.monotonic()
        self.steps[name] |= {"did": str(decision.action), "why": list(decision.reasons)}
        self.write()
        yield
        if decision.action is not Action.skip:
            self.steps[name]["seconds"] = round(time.monotonic() - began, 1)
        self.write()

    def content(self) -> dict[str, Any]:
        pipeline = self.chain.pipeline
        return {
            "format": FORMAT,
            "name": pipeline.name,
            "status": self.status,
            **({"error": self.error} if self.error else {}),
            "file": str(pipeline.file),
            "command": mask_words(["alignkit", "run", *pipeline.words]),
            "steps": self.steps,
            "started": self.started,
            "ended": None if self.status == "running" else _now(),
        }

    def write(self) -> None:
        folder = self.chain.pipeline.folder
        aside = folder / f".{PIPELINE}"
        aside.write_text(json.dumps(self.content(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(folder / PIPELINE)
        keep_report(folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say(text: str) -> None:
    TERMINAL.print(text, markup=False, highlight=False)
