"""A run directory from its first file to its last: refused, begun, resumed, finished, and recorded in `run.json`.

Nothing is written before `Run.begin`, so that a refused run, or one whose data or model turns out wrong, leaves a
finished run of the same name as it was. Only the main process writes.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from alignkit.choices import Resume
from alignkit.errors import AlignkitError, Interrupted, RunError, StopSignal, TrainingError, as_yaml
from alignkit.runs.changed_settings import completed_settings, differing
from alignkit.runs.full_disk import disk_trouble
from alignkit.runs.given import Given, mask_settings
from alignkit.runs.lock import LOCK, hold
from alignkit.runs.log import is_main_process
from alignkit.runs.machine import describe_machine, git_commit
from alignkit.runs.manifest import FORMAT, MANIFEST, check_format, parent_folders, read_manifest, run_time
from alignkit.runs.result import seal_result
from alignkit.terminal import in_a_line

logger = logging.getLogger(__name__)

# What a start that was killed before its first record leaves: nobody's work.
_LEFTOVERS = (LOCK, f".{MANIFEST}", ".encoded")
# What forcing cannot change: the shapes of the weights, and what the optimizer's saved state says.
_IN_CHECKPOINTS = (
    "lora.",
    *("model.config", "model.init", "model.dtype", "model.quantization", "value.model"),
    *("train.optim", "train.learning_rate", "train.weight_decay", "train.adam_", "ppo.advantage"),
)
_OTHER_SETTINGS = ["resume with the settings it began with, or start a run of another name"]
_PACKAGES = ("alignkit", "torch", "transformers", "trl", "peft", "datasets", "accelerate")


@dataclass
class Run:
    """One run directory, opened.

    Attributes:
        folder: the directory.
        stage: what trains in it.
        given: the settings as given, interpolations unresolved, and where they came from.
        resuming: an unfinished run goes on.
        finished: there is nothing to do: a finished run was asked to resume.
        result: figures for the record, such as the held-out loss.
        parents: the runs this one starts from.
        eval_groups: how rows are held out of the training data; empty where none are.
        started: when it first began.
        now: what a template that asks for the date sees: when it first began, by the clock of the main process.
        inputs: checksums of its data, template, tokenizer, models and functions, by kind and name.
        earlier: the record as it was, of a run that goes on.
        precision: that the run computes in; empty until it is known.
        timings: seconds by phase, over all starts.
        forced: it goes on although settings or inputs have changed.
        begun: this process writes to it.
        on_begin: called when the folder may be written to.
    """

    folder: Path
    stage: str
    given: Given
    resuming: bool = False
    finished: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    parents: list[dict[str, str]] = field(default_factory=list)
    eval_groups: str = ""
    started: str = ""
    now: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))  # local, as templates have it
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    earlier: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    forced: bool = False
    begun: bool = False
    on_begin: Callable[[], None] = lambda: None
    _opened: float = field(default_factory=time.monotonic)
    _starts: list[dict[str, Any]] = field(default_factory=list)
    _changes: list[str] = field(default_factory=list)

    @property
    def record(self) -> Mapping[str, Any]:
        """The settings as given, interpolations unresolved."""
        return self.given.settings

    def begin(self) -> None:
        """Start to write: what an overwritten run left is deleted, and the record says that this one is running.

        Raises:
            RunError: a run that this one starts from was removed while it was read.
        """
        if not is_main_process():
            return
        self._check_parents()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started, self.begun = self.started or _now(), True
        this = {
            "at": _now(),
            "changes": self._changes,
            "command": list(self.given.command),
            "folder": str(Path.cwd()),
            **describe_machine(),
        }
        this["launcher"] = _launcher()
        self._starts = [*self.earlier.get("starts", []), this | {"git": git_commit(Path.cwd())}]
        self._add_time("prepare", self._opened)
        try:
            self.write("running")  # first: what is left of a run that is being deleted must not say that it is finished
        except OSError:
            self.begun = False
            raise
        self._check_parents()  # again: from now on a removal of them sees this run
        for path in self.folder.iterdir() if not self.resuming else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (MANIFEST, LOCK):
                path.unlink()
        self.on_begin()

    def _check_parents(self) -> None:
        gone = [folder for folder in parent_folders(self.folder, {"parents": self.parents}) if not folder.is_dir()]
        if gone:
            raise RunError(*(f"{folder} was removed or moved while it was read" for folder in gone))

    def force(self, changes: Iterable[str]) -> None:
        """Go on although something has changed: each change is said and recorded with this start."""
        for line in changes:
            logger.warning("resume=force: %s", line)
            self._changes.append(line)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds that the block takes to those of a phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._add_time(phase, began)

    def _add_time(self, phase: str, began: float) -> None:
        self.timings[phase] = round(self.timings.get(phase, 0.0) + time.monotonic() - began, 3)

    def write(self, status: str, *, error: str | None = None) -> None:
        """Put the record in place, whole or not at all.

        Args:
            status: `running`, `finished`, `failed` or `interrupted`.
            error: what ended the run, in a line.
        """
        if not is_main_process():
            return
        content = {
            "format": FORMAT,
            "stage": self.stage,
            "status": status,
            **({"error": error} if error else {}),
            "job": dict(self.record),
            "origins": dict(self.given.origins),
            "parents": self.parents,
            "inputs": self.inputs,
            "eval_groups": self.eval_groups,
            "result": self.result,
            "versions": versions(),
            "precision": self.precision,
            "timings": self.timings,
            "starts": self._starts,
            "started": self.started,
            "date": self.now.isoformat(),
            "ended": None if status == "running" else _now(),
        }
        aside = self.folder / f".{MANIFEST}"
        try:
            aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            aside.replace(self.folder / MANIFEST)
        except OSError:  # a full disk
            with suppress(OSError):
                aside.unlink()
            raise


def versions() -> dict[str, str]:
    """Return the version of each package that the bits of a run depend on."""
    return {name: metadata.version(name) for name in _PACKAGES}


@contextmanager
def guard_run(folder: Path, *, stage: str, given: Given, resume: Resume, overwrite: bool) -> Iterator[Run]:
    """Guard a run directory for as long as its stage works.

    Args:
        folder: of the run; its last part is the run's name.
        stage: what will train in it.
        given: the settings as given; secrets among them are masked.
        resume: whether to go on with an unfinished run; a process that `torchrun --max-restarts` starts again does.
        overwrite: replace a run that is there.

    Yields:
        The run; the stage calls `begin` once every check has passed. Left normally after that it is recorded as
        finished, left by an error as failed or interrupted.

    Raises:
        RunError: the folder may not be used like this.
    """
    if _is_restarted(folder):
        resume, overwrite = resume if resume is not Resume.false else Resume.true, False
    if is_main_process():
        check_folder(folder, resume=resume, overwrite=overwrite)
    with hold(folder, folder / LOCK) if is_main_process() else nullcontext():
        masked = replace(given, settings=mask_settings(given.settings))
        run = Run(folder, stage, masked)
        run.now = given.now or run.now
        with _explain_full_disk(run):
            yield from _guarded(run, resume=resume, overwrite=overwrite)


@contextmanager
def _explain_full_disk(run: Run) -> Iterator[None]:
    """Say in one line what a full or read-only disk raises outside of a training step, which has words of its own."""
    try:
        yield
    except Exception as error:
        trouble = None if isinstance(error, AlignkitError) else disk_trouble(error)
        if trouble is None:
            raise
        then = "go on with resume=true" if run.begun else "start again"
        raise TrainingError(f"{run.stage}, outside of a step: {trouble}; free space, then {then}") from error


def _guarded(run: Run, *, resume: Resume, overwrite: bool) -> Iterator[Run]:
    run.forced = resume is Resume.force
    if is_main_process():
        _guard(run, resume=resume, overwrite=overwrite)
    elif resume is not Resume.false:  # every process must leave a finished run, or one would wait for the others
        manifest = read_manifest(run.folder)
        run.finished = manifest is not None and manifest["status"] == "finished"
        run.resuming = not run.finished and (manifest is not None or bool(_checkpoints(run.folder)))
    if run.resuming:
        run.earlier = read_manifest(run.folder) or {}
        run.now = run_time(run.folder) or run.now
        run.timings = dict(run.earlier.get("timings", {}))
    try:
        yield run
        if run.begun:
            seal_result(run.folder)
    except BaseException as error:
        stopped = _stopped(run, error)
        if run.begun:
            with suppress(OSError):  # a full disk may be what ended the run: that is the error to show
                line = in_a_line(str(stopped or error) or type(error).__name__)
                run.write("failed" if stopped is None else "interrupted", error=line)
        if stopped in (None, error):
            raise
        raise stopped from error
    if run.begun:
        run.write("finished")


def _launcher() -> str | None:
    """The elastic launcher (torchrun's) that started this process, if one did: of several nodes they share a number."""
    if "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    number = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return number if number != "none" else f"{socket.gethostname()} {os.getppid()}"


def was_restarted() -> bool:
    """Tell whether an elastic launcher has started this process again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _is_restarted(folder: Path) -> bool:
    """Whether the launcher has started this process again, after it began the run of this folder."""
    if not was_restarted():
        return False
    starts = (read_manifest(folder) or {}).get("starts")
    last = starts[-1] if isinstance(starts, list) and starts else None
    return isinstance(last, dict) and last.get("launcher") == _launcher()


def _stopped(run: Run, error: BaseException) -> Interrupted | None:
    """Say that a signal ended the run, if one did."""
    if isinstance(error, Interrupted):
        return error
    if not isinstance(error, (KeyboardInterrupt, StopSignal)):
        return None
    number = error.number if isinstance(error, StopSignal) else signal.SIGINT
    what = "go on with resume=true" if run.begun else "nothing was written"
    return Interrupted(number, f"{signal.Signals(number).name}: stopped outside of a training step; {what}")


def check_folder(folder: Path, *, resume: Resume, overwrite: bool) -> None:
    """Refuse what can be refused without a lock: in a folder of other things not even that is written.

    Raises:
        RunError: the folder may not be used like this.
    """
    if resume is not Resume.false and overwrite:
        raise RunError(f"resume={resume} goes on with a run and overwrite=true deletes it: give one of them")
    if folder.is_dir() and read_manifest(folder) is None and (checkpoints := _checkpoints(folder)):
        if resume is Resume.false:
            raise RunError(
                f"{folder} is a run whose {MANIFEST} is lost or damaged, and {checkpoints[-1].name} is there: "
                "resume=true goes on from it, with the settings given now; for a new run choose another name"
            )
    elif folder.exists() and (not folder.is_dir() or (read_manifest(folder) is None and _has_other_files(folder))):
        raise RunError(f"{folder} exists and is no run of alignkit: choose another name")
    _check_writable(folder)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("checkpoint-*"))


def _has_other_files(folder: Path) -> bool:
    return any(not path.name.startswith(_LEFTOVERS) for path in folder.iterdir())


def _guard(run: Run, *, resume: Resume, overwrite: bool) -> None:
    folder, goes_on = run.folder, resume is not Resume.false
    manifest = read_manifest(folder)
    if manifest is None:
        if goes_on and _checkpoints(folder):
            run.resuming = True
            logger.warning(
                "the %s of %s is lost or damaged: it goes on with the settings given now, and whether it began with "
                "them is not known",
                MANIFEST,
                folder,
            )
        elif goes_on and resume is not Resume.auto:
            raise RunError(
                f"resume={resume}: there is no run in {folder}; leave resume out, or resume=auto, to start one"
            )
        return
    check_format(manifest, folder)
    status = manifest["status"]
    if overwrite:
        return
    if goes_on:
        before, now = (completed_settings(run.stage, job) for job in (manifest.get("job", {}), run.record))
        run.finished, run.resuming = status == "finished", status != "finished"
        _check_unchanged(run, before, now)
        run.started = manifest.get("started", "")
    elif status == "finished":
        raise RunError(*finished_problems(folder, run.stage))
    elif not _checkpoints(folder):
        logger.warning("%s ended (%s) before its first checkpoint: it starts again", folder, status)
    else:
        raise RunError(
            f"{folder} is an unfinished run ({status}): go on with resume=true, or overwrite=true to replace it"
        )


def _check_writable(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"the run directory {folder} cannot be written: {existing} is {_why(existing)}")


def _why(path: Path) -> str:
    return "read-only for you" if path.is_dir() else "a file"


def finished_problems(folder: Path, stage: str) -> list[str]:
    """Say that a folder holds a finished run, and how to go on; an empty list where it does not."""
    if (read_manifest(folder) or {}).get("status") != "finished":
        return []
    return [
        f"{folder} is a finished run: choose another name, or overwrite=true to replace it",
        *_further(folder, stage),
    ]


def _further(folder: Path, stage: str) -> list[str]:
    """How to go on from a finished run, in a line; nothing of a reward model, which is no start for another run."""
    if stage == "reward":
        return []
    words = f"model=run model.name={shlex.quote(str(folder))}"
    words += " lora=none" if (folder / "adapter_config.json").is_file() else ""
    return [f"to train {folder} further, start another run from it: name=… {words}"]


def _check_unchanged(run: Run, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Resuming with other settings would be neither run, unless that is what was asked; each difference is named."""
    changed = {
        key: f"{key} was {as_yaml(old.get(key))} in {run.folder} and is {as_yaml(new.get(key))} now"
        for key in differing(old, new)
    }
    if run.finished or not run.forced:
        if changed:
            way_out = (_further(run.folder, run.stage) if run.finished else []) or _OTHER_SETTINGS
            raise RunError(*(f"resume=true: {line}" for line in changed.values()), *way_out)
        return
    if kept := [line for key, line in changed.items() if key.startswith(_IN_CHECKPOINTS)]:
        raise RunError(
            *(f"resume=force: {line}, and the checkpoint holds what it was" for line in kept), *_OTHER_SETTINGS
        )
    run.force(changed.values())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
