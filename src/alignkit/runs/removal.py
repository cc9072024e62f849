"""What may be removed of runs: checkpoints of finished ones, and whole runs that nothing descends from.

Who only reads a run holds no lock on it: it is told in a line that the run is gone (`taken.lost`). A run that
starts from another says so before it looks whether that is still there, and here is looked again for such a run once
that is set aside: whichever of the two comes first, the other one gives way.
"""

from __future__ import annotations

import shutil
from collections.abc import Container, Sequence
from contextlib import suppress
from pathlib import Path

from alignkit.errors import RunError
from alignkit.runs.found import FoundRun, descendants, find_runs
from alignkit.runs.lock import LOCK, hold, is_held


def check_removal(runs: Sequence[FoundRun], everyone: Sequence[FoundRun], *, checkpoints: bool) -> None:
    """Refuse to remove what is still needed.

    Args:
        runs: to remove.
        everyone: all runs there are.
        checkpoints: only their checkpoints.

    Raises:
        RunError: one line for each run that is being written, or that others start from, or that is to be resumed.
    """
    leaving = {run.folder.resolve() for run in runs}
    problems = []
    for run in runs:
        children = _staying(run, everyone, leaving)
        if run.status == "running":
            problems.append(f"{run.folder} is being written: wait until it has ended")
        elif is_held(run.folder.parent / LOCK):
            problems.append(
                f"{run.folder} is part of {run.folder.parent}, which is being written: wait until it has ended"
            )
        elif checkpoints and run.status != "finished":
            problems.append(
                f"{run.folder} is {run.status}: without its checkpoints it cannot be resumed; remove all of it"
            )
        elif children and not checkpoints:
            problems.append(_needed(run, children))
    if problems:
        raise RunError(*problems)


def _staying(run: FoundRun, everyone: Sequence[FoundRun], leaving: Container[Path]) -> list[FoundRun]:
    return [child for child in descendants(run, everyone) if child.folder.resolve() not in leaving]


def _needed(run: FoundRun, children: Sequence[FoundRun]) -> str:
    named = ", ".join(str(child.folder) for child in children)
    return f"{run.folder} is what {named} started from: remove those first, or with it"


def remove(run: FoundRun, root: Path, *, checkpoints: bool, leaving: Container[Path] = ()) -> None:
    """Remove the checkpoints of a run, or all of it.

    Args:
        run: that `check_removal` has passed.
        root: where runs that start from it are.
        checkpoints: only its checkpoints.
        leaving: folders of runs that are removed, too.

    Raises:
        RunError: a process writes to it, a run has started from it meanwhile, or it cannot be removed.
    """
    if run.folder.is_symlink():
        raise RunError(f"{run.folder} is a link to {run.folder.resolve()}: name that")
    folder = run.folder / "checkpoints" if checkpoints else run.folder
    with hold(run.folder, run.folder / LOCK):
        try:
            aside = _set_aside(folder)
            if not checkpoints and root.is_dir() and (children := _staying(run, find_runs(root), leaving)):
                aside.replace(folder)
                raise RunError(_needed(run, children))
            shutil.rmtree(aside, ignore_errors=not aside.exists())
        except OSError as error:
            raise RunError(f"{run.folder} cannot be removed: {error.strerror} ({error.filename})") from error
    if not checkpoints:
        _remove_if_empty(run.folder.parent)


def _set_aside(folder: Path) -> Path:
    """Move a folder, if it is there: what is killed half-way is no run, and no checkpoint, any more."""
    aside = folder.with_name(f".{folder.name}.removed")
    if aside.exists():  # of a removal that was killed
        shutil.rmtree(aside)
    if folder.exists():
        folder.replace(aside)
    return aside


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
