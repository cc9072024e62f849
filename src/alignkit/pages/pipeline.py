"""The chain of a pipeline, as its record tells it: which step is where, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.pages.run_files import read_json
from alignkit.pages.words import duration
from alignkit.runs.found import FoundRun
from alignkit.runs.manifest import PIPELINE, read_manifest

_DONE = {"run": "ran", "resume": "went on", "skip": "skipped: nothing had changed", "–": "not yet"}


@dataclass(frozen=True)
class PipelineStep:
    """A step of a pipeline.

    Attributes:
        name: of the step.
        does: the stage or command.
        done: what the last start of the pipeline did with it, in words.
        took: how long that took; empty where it did not run.
        run: its run, if there is one.
    """

    name: str
    does: str
    done: str
    took: str
    run: FoundRun | None


def named_pipeline(name: str, root: Path) -> Path | None:
    """Find the folder of a pipeline by its path or its name; None where there is none."""
    places = (Path(name).expanduser(), root / name)
    return next((folder for folder in places if (folder / PIPELINE).is_file()), None)


def pipeline_steps(folder: Path) -> list[PipelineStep]:
    """Read the steps of a pipeline, in their order; none of a record that is damaged."""
    record = read_json(folder / PIPELINE)
    steps = record.get("steps") if isinstance(record, dict) else None
    found = steps.items() if isinstance(steps, dict) else ()
    return [_step(folder, str(name), step) for name, step in found if isinstance(step, dict)]


def _step(folder: Path, name: str, step: Mapping[str, Any]) -> PipelineStep:
    # beside the record, so that all of it may be moved together
    places = (folder / Path(str(step.get("folder", name))).name, Path(str(step.get("folder", ""))))
    found = ((place, read_manifest(place)) for place in places)
    run = next((FoundRun(place, manifest) for place, manifest in found if manifest is not None), None)
    did, seconds = str(step.get("did", "–")), step.get("seconds")
    took = duration(seconds) if isinstance(seconds, (int, float)) else ""
    return PipelineStep(name, str(step.get("runs", "")), _DONE.get(did, did), took, run)
