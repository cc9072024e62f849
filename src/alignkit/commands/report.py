"""Write the page of runs, a pipeline or a sweep and of all they came from, and say what went wrong in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from alignkit.errors import RunError
from alignkit.pages.pipeline import named_pipeline, pipeline_steps
from alignkit.pages.report import REPORT, Step, report_page
from alignkit.pages.sweep import runs_of_sweep
from alignkit.runs.found import FoundRun, named_run, named_sweep
from alignkit.runs.log import TERMINAL
from alignkit.runs.output import outputs, writing
from alignkit.terminal import in_a_line, print_json_lines


def run(names: Sequence[str], root: Path, *, html: Path | None, as_json: bool) -> None:
    """Write the page, and print the verdicts.

    Args:
        names: of the runs, or of pipelines or sweeps.
        root: where runs are.
        html: the page; None is `report.html` in the folder of a single run, or here for several.
        as_json: print an object a run instead of words.

    Raises:
        RunError: there is no such run.
        OutputError: the page cannot be written.
    """
    pipeline = named_pipeline(names[0], root) if len(names) == 1 else None
    sweep = named_sweep(names[0], root) if len(names) == 1 else None
    runs = [run for name in names for run in _runs(name, root)]
    folder = pipeline or sweep or (runs[0].folder if len(runs) == 1 else Path())
    path = html or folder / REPORT
    with outputs(html=path):
        page, steps = report_page(runs, pipeline=pipeline, sweep=sweep)
        with writing(path) as aside:
            aside.write_text(page, encoding="utf-8")
    if as_json:
        return print_json_lines(
            {"folder": str(step.run.folder), "stage": step.run.stage, "verdicts": list(map(asdict, step.verdicts))}
            for step in steps
        )
    for step in steps:
        _say_verdicts(step)
    TERMINAL.print(f"page {path}", markup=False, highlight=False)


def _runs(name: str, root: Path) -> list[FoundRun]:
    """A run, or the runs of a pipeline or a sweep."""
    if (sweep := named_sweep(name, root)) is not None:
        return runs_of_sweep(sweep)
    if (folder := named_pipeline(name, root)) is None:
        return [named_run(name, root)]
    runs = [step.run for step in pipeline_steps(folder) if step.run is not None]
    if not runs:
        raise RunError(f"{folder} is a pipeline of which no step has run")
    return runs


def _say_verdicts(step: Step) -> None:
    found = [verdict for verdict in step.verdicts if verdict.state == "found"]
    words = (
        "no sign of trouble"
        if not found
        else f"{len(found)} signs of trouble"
        if len(found) > 1
        else "1 sign of trouble"
    )
    lines = [f"{step.name}: {step.run.status}" + (f", {words}" if step.verdicts else "")]
    lines += [f"  {verdict.sign}: {verdict.seen} {verdict.advice}" for verdict in found]
    for line in map(in_a_line, lines):
        TERMINAL.print(line, markup=False, highlight=False)
