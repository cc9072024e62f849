"""What was swept and what came of it, as the record of a sweep tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.pages.run_files import read_json
from alignkit.runs.found import FoundRun, find_runs
from alignkit.runs.sweep import SWEEP


@dataclass(frozen=True)
class SweptLine:
    """A run of a sweep.

    Attributes:
        folder: of the run.
        given: what it was given and others were not.
        figure: the name of what the runs are compared by.
        value: of it, or why there is none.
        is_best: of all.
    """

    folder: Path
    given: str
    figure: str
    value: str
    is_best: bool


def is_sweep(folder: Path) -> bool:
    """Tell whether a folder holds the runs of a sweep."""
    return (folder / SWEEP).is_file()


def runs_of_sweep(folder: Path) -> list[FoundRun]:
    """Return the runs of a sweep in the order of their settings, those that have not begun left out."""
    order = {line.folder.name: place for place, line in enumerate(swept(folder))}
    return sorted(find_runs(folder), key=lambda run: order.get(run.folder.name, len(order)))


def swept(folder: Path) -> list[SweptLine]:
    """Read the lines of a sweep; none where it has not ended, or its record is damaged."""
    record = read_json(folder / "sweep.json")
    runs = record.get("runs") if isinstance(record, dict) else None
    return [_line(folder, record, run) for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []


def _line(folder: Path, record: Mapping[str, Any], run: Mapping[str, Any]) -> SweptLine:
    overrides, value = run.get("overrides"), run.get("value")
    return SweptLine(
        folder=folder / Path(str(run.get("folder", ""))).name,  # beside the record, so that all of it may be moved
        given=" ".join(map(str, overrides)) if isinstance(overrides, list) else "",
        figure=str(record.get("figure") or "figure").replace("_", " "),
        value=f"{value:.4f}" if isinstance(value, (int, float)) else str(run.get("problem") or "–"),
        is_best=run.get("folder") is not None and run.get("folder") == record.get("best"),
    )
