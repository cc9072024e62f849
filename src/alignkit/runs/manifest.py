"""The record of a run, `run.json`, read back: what ran, when, from which runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from alignkit.choices import EvalGroups
from alignkit.errors import RunError
from alignkit.home import expand_home

MANIFEST = "run.json"
PIPELINE = "pipeline.json"  # beside the runs of its steps
_SHAPES: dict[str, type[Any]] = {
    **dict.fromkeys(("job", "origins", "inputs", "result", "versions", "timings"), dict),
    **dict.fromkeys(("parents", "starts"), list),
}
FORMAT = 3  # 1: before results had checksums; 2: without origins, starts and timings


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read `run.json` in a folder; None where there is none, or none of ours."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if _is_record(content) else None


def _is_record(content: Any) -> bool:
    """Tell whether this is a record of ours; what is read of it has the shape it was written with."""
    if not isinstance(content, dict) or not isinstance(content.get("status"), str):
        return False
    if not all(isinstance(content.get(key, kind()), kind) for key, kind in _SHAPES.items()):
        return False
    job, parents, starts = content.get("job", {}), content.get("parents", []), content.get("starts", [])
    return (
        all(isinstance(job.get(section, {}), dict) for section in ("model", "template", "data"))
        and isinstance(job.get("model", {}).get("name", ""), str)
        and all(isinstance(parent, dict) and isinstance(parent.get("path"), str) for parent in parents)
        and all(isinstance(start, dict) and _is_start(start) for start in starts)
        and content.get("eval_groups", "") in ("", *EvalGroups)
        and all(isinstance(seconds, (int, float)) for seconds in content.get("timings", {}).values())
    )


def _is_start(start: Mapping[str, Any]) -> bool:
    command, git = start.get("command", []), start.get("git") or {}
    return (
        isinstance(command, list)
        and all(isinstance(word, str) for word in command)
        and isinstance(git, dict)
        and isinstance(git.get("commit", ""), str)
        and isinstance(start.get("folder", ""), str)
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


def lineage(names: Mapping[str, str], folder: Path) -> list[dict[str, str]]:
    """Return the runs among the models of a job, as entries of `Run.parents`.

    Args:
        names: what each model is called, by the setting that names it.
        folder: of the run whose parents they are.

    Returns:
        Of each: `setting`, `path` relative to the folder, so that all of them may move together, and `sha256` of its
        record.
    """
    found = []
    for setting, name in names.items():
        parent = Path(expand_home(name))
        if read_manifest(parent) is not None:
            digest = hashlib.sha256((parent / MANIFEST).read_bytes()).hexdigest()
            path = os.path.relpath(parent.resolve(), folder.resolve())
            found.append({"setting": setting, "path": path, "sha256": digest})
    return found


def parent_folders(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """Return the folders of the runs that a run starts from, wherever both have been moved together."""
    return [Path(os.path.normpath(folder.resolve() / parent["path"])) for parent in manifest.get("parents", [])]


def step_folders(folder: Path) -> dict[str, str]:
    """Return what `${run:STEP}` means in the record of a run: the steps of its pipeline, which lie beside it."""
    return {path.name: str(path) for path in folder.parent.iterdir() if path.is_dir()}


def check_format(manifest: Mapping[str, Any], folder: Path) -> None:
    """Refuse a record of a later alignkit, which this one may misread.

    Raises:
        RunError: the record has a number that this version does not know.
    """
    number = manifest.get("format", 1)
    if not isinstance(number, int) or number > FORMAT:
        raise RunError(
            f"{folder} was written by a later alignkit: its {MANIFEST} has format {number}, and this one knows up to "
            f"{FORMAT}; install the version it names in 'versions'"
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Go through nested settings with their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
