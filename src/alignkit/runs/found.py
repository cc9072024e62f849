"""The runs below a folder, as they stand on the disk now: status, figure, size, and what descends from what."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.errors import RunError, did_you_mean
from alignkit.home import expand_home
from alignkit.jobs import name_problem
from alignkit.runs.lock import LOCK, is_held
from alignkit.runs.manifest import MANIFEST, parent_folders, read_manifest
from alignkit.runs.sweep import SWEEP

logger = logging.getLogger(__name__)

ROOT = Path("runs")
_SILENT_SECONDS = 600.0  # a run of another host that wrote nothing for so long is taken to have ended
# What a person asks first of each stage, from the best answer to the one there always is.
KEY_FIGURES = (
    "eval_score",
    "objective/score",
    "eval_rewards/accuracies",
    "eval_accuracy",
    "eval_loss",
    "train_loss",
    "largest_difference",
)


@dataclass
class FoundRun:
    """One run directory.

    Attributes:
        folder: the directory.
        manifest: its record.
    """

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def stage(self) -> str:
        """What made it: a stage, or `merge`."""
        return str(self.manifest.get("stage", "?"))

    @cached_property
    def status(self) -> str:
        """`running`, `finished`, `failed` or `interrupted`; a run that nobody leads any more is interrupted."""
        status = str(self.manifest["status"])
        return status if status != "running" or self._is_led() else "interrupted"

    def _is_led(self) -> bool:
        starts = self.manifest.get("starts") or [{}]
        if starts[-1].get("host", socket.gethostname()) == socket.gethostname():
            return is_held(self.folder / LOCK)
        return time.time() - self.written < _SILENT_SECONDS

    @cached_property
    def written(self) -> float:
        """When a file of it last changed, in seconds since 1970."""
        return max((file.st_mtime for file in _files(self.folder)), default=0.0)

    @cached_property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.st_size for file in _files(self.folder))

    @cached_property
    def checkpoints(self) -> int:
        """Bytes of its checkpoints."""
        return sum(file.st_size for file in _files(self.folder / "checkpoints"))

    @cached_property
    def parents(self) -> list[Path]:
        """The folders of the runs it starts from."""
        return parent_folders(self.folder, self.manifest)

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep that it is a part of."""
        return self.folder.parent if (self.folder.parent / SWEEP).is_file() else None

    @cached_property
    def figure(self) -> tuple[str, float] | None:
        """The figure asked first of its stage, by name; of an unfinished run the last one it wrote."""
        found = self.manifest.get("result") or _last_figures(self.folder / "metrics.jsonl")
        for name in KEY_FIGURES:
            value = found.get(name)
            value = value.get("last") if isinstance(value, dict) else value
            if isinstance(value, (int, float)):
                return name, float(value)
        return None


def find_runs(root: Path) -> list[FoundRun]:
    """Find the runs below a folder, oldest first; checkpoints are not looked into. What cannot be read is named.

    Raises:
        RunError: there is no such folder.
    """
    if not os.path.isdir(root):  # noqa: PTH112  # Path.is_dir raises where a name is too long
        raise RunError(f"there is no folder {root}: runs are written to runs/STAGE/NAME; --root DIR looks elsewhere")
    found = [FoundRun(folder, manifest) for folder in _folders(root) if (manifest := _record(folder)) is not None]
    return sorted(found, key=lambda run: (str(run.manifest.get("started", "")), str(run.folder)))


def named_run(name: str, root: Path) -> FoundRun:
    """Find a run by its folder, by its path below the root, or by its name where only one run has it.

    Raises:
        RunError: no run, or more than one, is called so.
    """
    for folder in _meant(name, root):
        if (manifest := read_manifest(folder)) is not None:
            return FoundRun(folder, manifest)
        if (folder / MANIFEST).is_file():
            raise RunError(f"{folder / MANIFEST} is damaged, or no record of alignkit's")
    runs = find_runs(root)
    alike = [run for run in runs if run.folder.name == name]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise RunError(f"{len(alike)} runs are called {name}: {', '.join(str(run.folder) for run in alike)}")
    names = Counter(run.folder.name for run in runs)
    known = [str(run.folder.relative_to(root)) for run in runs]
    hint = did_you_mean(name, [*known, *(name for name, number in names.items() if number == 1)])
    raise RunError(f"there is no run {name} below {root}{hint or '; alignkit runs lists them'}")


def named_sweep(name: str, root: Path) -> Path | None:
    """Find the folder of a sweep by its path, or by its name where only one sweep has it; None where there is none."""
    for folder in _meant(name, root):
        if (folder / SWEEP).is_file():
            return folder
    alike = [file.parent for file in root.rglob(SWEEP) if file.parent.name == name]
    return alike[0] if len(alike) == 1 else None


def descendants(run: FoundRun, runs: Sequence[FoundRun]) -> list[FoundRun]:
    """List the runs that start from a run, at whatever distance."""
    folders, found = {run.folder.resolve()}, []
    for other in runs:  # oldest first: a child is younger than its parent
        if folders & set(other.parents) and other.folder.resolve() not in folders:
            folders.add(other.folder.resolve())
            found.append(other)
    return found


def _meant(name: str, root: Path) -> tuple[Path, Path]:
    """The folders that a name may stand for."""
    if problem := name_problem(name):
        raise RunError(f"{name!r:.60}: {problem}")
    return Path(expand_home(name)), root / name


def _record(folder: Path) -> dict[str, Any] | None:
    manifest = read_manifest(folder)
    if manifest is None:
        logger.warning("%s is left out: its %s is damaged, or no record of alignkit's", folder, MANIFEST)
    return manifest


def _folders(root: Path) -> Iterator[Path]:
    for place, below, _ in os.walk(root, onerror=_say_unreadable):
        if (Path(place) / MANIFEST).is_file():
            yield Path(place)
            below.clear()
        below[:] = [name for name in below if not name.startswith(".")]


def _say_unreadable(error: OSError) -> None:
    logger.warning("%s is left out: %s", error.filename, error.strerror)


def _files(folder: Path) -> Iterator[os.stat_result]:
    """What is known of each file; a run that is being written removes some meanwhile."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = (Path(place) / name).lstat()
                if stat.S_ISREG(found.st_mode):
                    yield found


def _last_figures(path: Path) -> dict[str, Any]:
    """The last value of each figure in the metrics of a run that goes on."""
    figures: dict[str, Any] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return figures
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # being written
            continue
        if isinstance(entry, dict):
            figures |= entry | ({"train_loss": entry["loss"]} if "loss" in entry else {})
    return figures
