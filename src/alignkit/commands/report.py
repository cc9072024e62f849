"""Write the page of a run, or of several and of all they came from, and say what went wrong in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from alignkit.pages.report import REPORT, Step, report_page
from alignkit.runs.found import named_run
from alignkit.runs.log import TERMINAL
from alignkit.runs.output import outputs, writing
from alignkit.terminal import in_a_line, print_json_lines


def run(names: Sequence[str], root: Path, *, html: Path | None, as_json: bool) -> None:
    """Write the page, and print the verdicts.

    Args:
        names: of the runs.
        root: where runs are.
        html: the page; None is `report.html` in the folder of a single run, or here for several.
        as_json: print an object a run instead of words.

    Raises:
        RunError: there is no such run.
        OutputError: the page cannot be written.
    """
    runs = [named_run(name, root) for name in names]
    path = html or (runs[0].folder / REPORT if len(runs) == 1 else Path(REPORT))
    with outputs(html=path):
        page, steps = report_page(runs)
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


def _say_verdicts(step: Step) -> None:
    found = [verdict for verdict in step.verdicts if verdict.state == "found"]
    words = (
        "no sign of trouble"
        if not found
        else f"{len(found)} signs of trouble"
        if len(found) > 1
        else "1 sign of trouble"
    )
    lines = [f"{step.name}: {step.run.status}, {words}"]
    lines += [f"  {verdict.sign}: {verdict.seen} {verdict.advice}" for verdict in found]
    for line in map(in_a_line, lines):
        TERMINAL.print(line, markup=False, highlight=False)
