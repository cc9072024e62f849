"""`alignkit runs`, `report` and `repeat`: what has been run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.arguments import home
from alignkit.home import expand_home

runs = typer.Typer(
    help="List, show, compare, find and remove the runs of a project. Alone it prints the tree of all runs.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
Root = Annotated[Path, typer.Option(help="Folder that holds the runs.")]
Name = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, its path below --root, or its name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
_ROOT = Path("runs")


@runs.callback()
def tree(context: typer.Context, root: Root = _ROOT, json: Json = False) -> None:
    """List, show, compare, find and remove the runs of a project. Alone it prints the tree of all runs."""
    if context.invoked_subcommand is None:
        from alignkit.commands.runs import list_runs

        list_runs(root, as_json=json)


@runs.command()
def show(
    run: Name,
    root: Root = _ROOT,
    json: Json = False,
    png: Annotated[Path | None, typer.Option(help="Also draw the figures of a sweep into this PNG file.")] = None,
) -> None:
    """Show one run or one sweep: what it was told, what it started from, and what came of it."""
    from alignkit.commands.runs import show_run
    from alignkit.errors import check_writable

    check_writable("--png", png)
    show_run(run, root, as_json=json, png=png)


@runs.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A run.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another run.")],
    root: Root = _ROOT,
    json: Json = False,
) -> None:
    """Compare two runs: settings, inputs, versions, figures, and the first step that differs."""
    from alignkit.commands.runs import diff_runs

    diff_runs(one, other, root, as_json=json)


@runs.command()
def path(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Name of a run; all runs if left out.")] = None,
    root: Root = _ROOT,
    stage: Annotated[str | None, typer.Option(help="Only runs of this stage.")] = None,
    status: Annotated[str | None, typer.Option(help="Only runs with this status.")] = None,
    last: Annotated[bool, typer.Option("--last", help="Only the run that was started last.")] = False,
) -> None:
    """Print the folders of runs, one per line, for scripts.

    alignkit dpo model=run model.name="$(alignkit runs path --stage sft --status finished --last)"
    """
    from alignkit.commands.runs import print_paths

    print_paths(run, root, stage=stage, status=status, last=last)


@runs.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="The runs to remove.")],
    root: Root = _ROOT,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Remove only the checkpoints of finished runs.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs that no other run started from, or only their checkpoints. The freed bytes are printed."""
    from alignkit.commands.runs import remove_runs

    remove_runs(names, root, checkpoints=checkpoints, ask=not yes)


def report(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs, pipelines, sweeps: a folder, a path below --root, or a name."),
    ],
    root: Annotated[Path, typer.Option(callback=home, help="Folder that holds the runs.")] = Path("runs"),
    html: Annotated[
        Path | None,
        typer.Option(
            callback=home,
            help="File of the page. Without it: report.html in the folder of the run; of several runs, in this folder.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per run instead of words.")] = False,
) -> None:
    """Write one self-contained page of a run and of all runs it came from, and say whether they went well.

    alignkit report runs/ppo/ppo-smoke
    """
    from alignkit.errors import check_writable

    check_writable("--html", html)
    from alignkit.commands.report import run as write_page

    write_page(names, root, html=html, as_json=json)


def repeat(
    run: Name,
    into: Annotated[Path | None, typer.Option(help="The new run directory; RUN-repeat if left out.")] = None,
    root: Root = _ROOT,
    json: Annotated[bool, typer.Option("--json", help="Print what differs as one JSON object.")] = False,
) -> None:
    """Train a finished run again, and compare the results.

    It trains what the record of the run says. The exit status is 1 where the result is not the same, bit for bit.

    alignkit repeat runs/sft/smoke
    """
    from alignkit.repeat import repeat as again
    from alignkit.repeat import report
    from alignkit.runs.found import named_run
    from alignkit.terminal import for_the_result_alone

    with for_the_result_alone() if json else contextlib.nullcontext():
        result = again(named_run(expand_home(run), root).folder, into)
    report(result, as_json=json)
    if not result.is_same:
        raise typer.Exit(1)
