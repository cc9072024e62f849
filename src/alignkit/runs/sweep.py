"""The end of a sweep: what each of its runs was given and what it came to, as a table and as `sweep.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit.runs.given import mask_settings
from alignkit.runs.log import TERMINAL, is_main_process
from alignkit.runs.manifest import read_manifest
from alignkit.runs.output import writing
from alignkit.terminal import in_a_line, plain_number

SWEEP = "multirun.yaml"  # what Hydra leaves in the folder of a sweep
_SCORES = ("eval_score", "objective/score")  # what is best where it is highest; of a loss it is the lowest


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep.

    Attributes:
        overrides: what it was given and others were not, as `key=value`.
        folder: of the run.
        problem: why it is not finished; empty where it is.
    """

    overrides: Sequence[str]
    folder: Path
    problem: str = ""


def announce(run: SweptRun) -> None:
    """Say which run of the sweep begins."""
    if is_main_process():
        TERMINAL.print(f"\nsweep     {_words(run)}; run {run.folder}", markup=False, highlight=False)


def mask_sweep(folder: Path) -> None:
    """Leave of the settings that Hydra has written for the sweep those of the job, their secrets masked."""
    file = folder / SWEEP
    if not is_main_process() or not file.is_file():
        return
    job = {key: value for key, value in yaml.safe_load(file.read_bytes()).items() if key != "hydra"}
    with writing(file) as aside:
        aside.write_text(yaml.safe_dump(mask_settings(job), sort_keys=False, allow_unicode=True), encoding="utf-8")


def conclude_sweep(folder: Path, stage: str, runs: Sequence[SweptRun]) -> dict[str, Any]:
    """Show the runs with their figure, the best one marked, and write the same to `sweep.json`.

    Args:
        folder: of the sweep.
        stage: of its runs.
        runs: in their order.

    Returns:
        What `sweep.json` holds.
    """
    results = [{} if run.problem else (read_manifest(run.folder) or {}).get("result", {}) for run in runs]
    figure = _headline(results)
    values = [_value(result, figure) for result in results]
    known = [value for value in values if value is not None and math.isfinite(value)]
    best = (max if figure in _SCORES else min)(known) if known else None
    record = {
        "folder": str(folder),
        "stage": stage,
        "figure": figure,
        "best": str(runs[values.index(best)].folder) if best is not None else None,
        "runs": [
            {
                "folder": str(run.folder),
                "overrides": list(run.overrides),
                "value": value,
                "problem": run.problem or None,
            }
            for run, value in zip(runs, values, strict=True)
        ],
    }
    if is_main_process():
        with writing(folder / "sweep.json") as aside:
            aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = _table(record, [_words(run) for run in runs])
        TERMINAL.print("\n" + "\n".join(lines), markup=False, highlight=False)
    return record


def _words(run: SweptRun) -> str:
    return in_a_line(" ".join(run.overrides)) or "–"


def _headline(results: Sequence[Mapping[str, Any]]) -> str | None:
    """The name of the figure that runs are compared by: held out before trained, a score before a loss."""
    keys = list(dict.fromkeys(key for result in results for key in result))
    losses = [key for key in keys if key.startswith("eval_") and key.endswith("_loss")]
    wanted = [_SCORES[0], *losses, _SCORES[1], "train_loss"]
    return next((key for key in wanted if key in keys), None)


def _value(result: Mapping[str, Any], figure: str | None) -> float | None:
    found = result.get(figure) if figure is not None else None
    return float(found["last"]) if isinstance(found, Mapping) and "last" in found else None


def _table(record: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    name = str(record["figure"] or "figure").replace("_", " ")
    rows = [("run", "overrides", name)]
    for run, given in zip(record["runs"], words, strict=True):
        value = "–" if run["value"] is None else plain_number(run["value"])
        mark = "  the best" if run["folder"] == record["best"] else ""
        rows.append((run["folder"], given, in_a_line(run["problem"]) if run["problem"] else value + mark))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{folder:{widths[0]}}  {given:{widths[1]}}  {value}" for folder, given, value in rows]
