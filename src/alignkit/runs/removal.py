"""What may be removed of runs: checkpoints of finished ones, and whole runs that nothing descends from."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from alignkit.errors import RunError
from alignkit.runs.found import FoundRun, descendants
from alignkit.runs.lock import LOCK, hold


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
        children = [child for child in descendants(run, everyone) if child.folder.resolve() not in leaving]
        if run.status == "running":
            problems.append(f"{run.folder} is being written: wait until it has ended")
        elif checkpoints and run.status != "finished":
            problems.append(
                f"{run.folder} is {run.status}: without its checkpoints it cannot be resumed; remove all of it"
            )
        elif children and not checkpoints:
            named = ", ".join(str(child.folder) for child in children)
            problems.append(f"{run.folder} is what {named} started from: remove those first, or with it")
    if problems:
        raise RunError(*problems)


def remove(run: FoundRun, *, checkpoints: bool) -> None:
    """Remove the checkpoints of a run, or all of it.

    Raises:
        RunError: a process writes to it, or it cannot be removed.
    """
    if run.folder.is_symlink():
        raise RunError(f"{run.folder} is a link to {run.folder.resolve()}: name that")
    with hold(run.folder, run.folder / LOCK):
        try:
            _remove(run.folder / "checkpoints" if checkpoints else run.folder)
        except OSError as error:
            raise RunError(f"{run.folder} cannot be removed: {error.strerror} ({error.filename})") from error
    if not checkpoints:
        _remove_if_empty(run.folder.parent)


def _remove(folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.removed")
    if aside.exists():  # of a removal that was killed
        shutil.rmtree(aside)
    if folder.exists():
        folder.replace(aside)  # at once: what is killed half-way is no run, and no checkpoint, any more
        shutil.rmtree(aside)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
