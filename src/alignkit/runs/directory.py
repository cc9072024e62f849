"""A run directory from its first file to its last: refused, begun, resumed, finished, and recorded in `run.json`.

Nothing is written before `Run.begin`, so that a refused run, or one whose data or model turns out wrong, leaves a
finished run of the same name as it was. Only the main process writes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from alignkit.config import EvalGroups
from alignkit.errors import Interrupted, RunError, StopSignal
from alignkit.jobs import JOBS
from alignkit.runs.lock import LOCK, hold
from alignkit.runs.log import is_main_process
from alignkit.runs.result import SEALED_SINCE, seal_result

logger = logging.getLogger(__name__)

MANIFEST = "run.json"
# What a start that was killed before its first record leaves: nobody's work.
_LEFTOVERS = (LOCK, f".{MANIFEST}", ".encoded")
_MAY_CHANGE = ("name", "resume", "overwrite", "samples")  # on resume: they change no bit of the result
_PACKAGES = ("alignkit", "torch", "transformers", "trl", "peft", "datasets", "accelerate")


@dataclass
class Run:
    """One run directory, opened.

    Attributes:
        folder: the directory.
        stage: what trains in it.
        record: the settings as given, interpolations unresolved.
        resuming: an unfinished run goes on.
        finished: there is nothing to do: a finished run was asked to resume.
        result: figures for the record, such as the held-out loss.
        parents: the runs this one starts from.
        eval_groups: how rows are held out of the training data; empty where none are.
        started: when it first began.
        now: what a template that asks for the date sees: when it first began, by the clock of the main process.
        inputs: checksums of its data, template, tokenizer, models and functions, by kind and name.
        earlier: the record as it was, of a run that goes on.
        begun: this process writes to it.
        on_begin: called when the folder may be written to.
    """

    folder: Path
    stage: str
    record: Mapping[str, Any]
    resuming: bool = False
    finished: bool = False
    result: dict[str, Any] = field(default_factory=dict)
    parents: list[dict[str, str]] = field(default_factory=list)
    eval_groups: str = ""
    started: str = ""
    now: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))  # local, as templates have it
    inputs: dict[str, dict[str, str]] = field(default_factory=dict)
    earlier: dict[str, Any] = field(default_factory=dict)
    begun: bool = False
    on_begin: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Start to write: what an overwritten run left is deleted, and the record says that this one is running."""
        if not is_main_process():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.started, self.begun = self.started or _now(), True
        self.write("running")  # first: what is left of a run that is being deleted must not say that it is finished
        for path in self.folder.iterdir() if not self.resuming else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (MANIFEST, LOCK):
                path.unlink()
        self.on_begin()

    def write(self, status: str) -> None:
        """Put the record in place, whole or not at all."""
        if not is_main_process():
            return
        content = {
            "format": SEALED_SINCE,
            "stage": self.stage,
            "status": status,
            "job": dict(self.record),
            "parents": self.parents,
            "inputs": self.inputs,
            "eval_groups": self.eval_groups,
            "result": self.result,
            "versions": {name: metadata.version(name) for name in _PACKAGES},
            "started": self.started,
            "date": self.now.isoformat(),
            "ended": None if status == "running" else _now(),
        }
        aside = self.folder / f".{MANIFEST}"
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(self.folder / MANIFEST)


@contextmanager
def guard_run(folder: Path, *, stage: str, record: Mapping[str, Any], resume: bool, overwrite: bool) -> Iterator[Run]:
    """Guard a run directory for as long as its stage works.

    Args:
        folder: of the run; its last part is the run's name.
        stage: what will train in it.
        record: the settings as given.
        resume: go on with an unfinished run.
        overwrite: replace a run that is there.

    Yields:
        The run; the stage calls `begin` once every check has passed. Left normally after that it is recorded as
        finished, left by an error as failed or interrupted.

    Raises:
        RunError: the folder may not be used like this.
    """
    if is_main_process():
        _check_folder(folder, resume=resume, overwrite=overwrite)
    with hold(folder, folder / LOCK) if is_main_process() else nullcontext():
        yield from _guarded(Run(folder, stage, record), resume=resume, overwrite=overwrite)


def _guarded(run: Run, *, resume: bool, overwrite: bool) -> Iterator[Run]:
    if is_main_process():
        _guard(run, resume=resume, overwrite=overwrite)
    else:  # every process must leave a finished run, or one would wait for the others
        run.finished = resume and (read_manifest(run.folder) or {}).get("status") == "finished"
        run.resuming = resume and not run.finished
    if run.resuming:
        run.earlier = read_manifest(run.folder) or {}
        run.now = run_time(run.folder) or run.now
    try:
        yield run
        if run.begun:
            seal_result(run.folder)
    except BaseException as error:
        stopped = _stopped(run, error)
        if run.begun:
            with suppress(OSError):  # a full disk may be what ended the run: that is the error to show
                run.write("failed" if stopped is None else "interrupted")
        if stopped in (None, error):
            raise
        raise stopped from error
    if run.begun:
        run.write("finished")


def _stopped(run: Run, error: BaseException) -> Interrupted | None:
    """Say that a signal ended the run, if one did."""
    if isinstance(error, Interrupted):
        return error
    if not isinstance(error, (KeyboardInterrupt, StopSignal)):
        return None
    number = error.number if isinstance(error, StopSignal) else signal.SIGINT
    what = "go on with resume=true" if run.begun else "nothing was written"
    return Interrupted(number, f"{signal.Signals(number).name}: stopped outside of a training step; {what}")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read `run.json` in a folder; None where there is none, or none of ours."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if _is_record(content) else None


def _is_record(content: Any) -> bool:
    """Tell whether this is a record of ours; what is read of it has the shape it was written with."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("status"), str)
        and isinstance(content.get("job", {}), dict)
        and isinstance(content.get("parents", []), list)
        and all(isinstance(content.get("job", {}).get(section, {}), dict) for section in ("model", "template", "data"))
        and all(
            isinstance(parent, dict) and isinstance(parent.get("path"), str) for parent in content.get("parents", [])
        )
        and content.get("eval_groups", "") in ("", *EvalGroups)
    )


def recorded_groups(manifest: Mapping[str, Any]) -> EvalGroups | None:
    """Return how a run held out rows of its training data; None where it held out none."""
    data = manifest.get("job", {}).get("data", {})
    if not isinstance(data, dict) or not data.get("eval_fraction"):
        return None
    return EvalGroups(manifest.get("eval_groups") or EvalGroups.prompt)  # before it was recorded there was no other way


def run_time(folder: Path | None) -> datetime | None:
    """Return when a run first began, by the clock of its place: the date that its templates see; None of no run."""
    record = (read_manifest(folder) if folder is not None else None) or {}
    try:
        if "date" in record:
            return datetime.fromisoformat(record["date"])
        return datetime.fromisoformat(record["started"]).astimezone().replace(tzinfo=None)  # before there was a date
    except (KeyError, TypeError, ValueError):
        return None


def lineage(name: str) -> list[dict[str, str]]:
    """Return the run a model name refers to, as an entry of `Run.parents`; empty where it is not one of ours."""
    folder = Path(name).expanduser()
    if read_manifest(folder) is None:
        return []
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return [{"path": str(folder.resolve()), "sha256": digest}]


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse what can be refused without a lock: in a folder of other things not even that is written."""
    if resume and overwrite:
        raise RunError("resume=true goes on with a run and overwrite=true deletes it: give one of them")
    if folder.is_dir() and read_manifest(folder) is None and (checkpoints := _checkpoints(folder)):
        if not resume:
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


def _guard(run: Run, *, resume: bool, overwrite: bool) -> None:
    folder = run.folder
    manifest = read_manifest(folder)
    if manifest is None:
        if resume and _checkpoints(folder):
            run.resuming = True
            logger.warning(
                "the %s of %s is lost or damaged: it goes on with the settings given now, and whether it began with "
                "them is not known",
                MANIFEST,
                folder,
            )
        elif resume:
            raise RunError(f"resume=true: there is no run in {folder}; leave resume out to start one")
        return
    status = manifest["status"]
    if overwrite:
        return
    if resume and status == "finished":
        run.finished = True
    elif resume:
        before, now = (_completed(run.stage, job) for job in (manifest.get("job", {}), run.record))
        _check_unchanged(folder, before, now)
        run.resuming = True
        run.started = manifest.get("started", "")
    elif status == "finished":
        raise RunError(f"{folder} is a finished run: choose another name, or overwrite=true to replace it")
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


def _completed(stage: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the record of a job over the defaults of the settings, some of which may be newer than the record."""
    return {**dict(flat(asdict(JOBS[stage]()))), **dict(flat(job))}


def _check_unchanged(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Resuming with other settings would be neither run; each difference is named."""
    changed = [
        f"resume=true: {key} was {old.get(key)!r} in {folder} and is {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in _MAY_CHANGE
    ]
    if changed:
        raise RunError(*changed, "resume with the settings it began with, or start a run of another name")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Go through nested settings with their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
