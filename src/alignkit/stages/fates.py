"""A run that goes on has every source row in the set where it was when it began, with the same fate."""

from __future__ import annotations

from alignkit.data.sets.ledger import Ledger
from alignkit.errors import DamagedFile, RunError
from alignkit.json_files import read_objects
from alignkit.runs.directory import Run
from alignkit.runs.log import is_main_process


def check_fates(run: Run, ledger: Ledger) -> None:
    """Compare what becomes of the source rows with what became of them when a run began, if it goes on.

    The same files and settings can give other sets by another version of alignkit, which cuts, drops or holds out rows
    by other rules.

    Raises:
        RunError: a row is in another set, or has another fate.
    """
    path = run.folder / "rows.jsonl"
    if not (run.resuming and is_main_process() and path.exists()):
        return
    try:
        before = [f"{row.get('fate')} ({row.get('set')})" for row in read_objects(path)]
    except DamagedFile:  # a kill has cut it short, and it is written anew
        return
    rows = ledger.in_source_order()
    changed = [(row.source, was, f"{row.fate} ({row.set})") for row, was in zip(rows, before, strict=False)]
    changed = [(source, was, now) for source, was, now in changed if was != now]
    problems = [f"{source} was {was} when {run.folder} began, and is {now}" for source, was, now in changed[:1]]
    if len(changed) > 1:
        problems[0] += f" ({len(changed):,} rows have changed)"
    if len(rows) != len(before):
        problems.append(f"{len(before):,} rows were read when {run.folder} began, and {len(rows):,} now")
    if run.forced:
        run.force(problems)
    elif problems:
        raise RunError(
            *(f"resume=true: {problem}" for problem in problems),
            "the version of alignkit that began the run goes on with it as it was; resume=force goes on all the same",
        )
