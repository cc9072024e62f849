"""`alignkit run` and `demo`: several stages in one command."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.arguments import ConfigDir, home


def run_pipeline(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="config=FILE [STEP.key=value]...", help="The pipeline, and settings of its steps."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Run this step and those after it again.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="STEP", help="Run this step again, and no other.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all steps, print what each would do and why, and run nothing.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the record of the chain, or the plan, as one line, and all else elsewhere."),
    ] = False,
    config_dir: ConfigDir = None,
    step: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="Run this step in this process, for accelerate launch and torchrun."),
    ] = None,
    until_closed: Annotated[bool, typer.Option("--until-closed", hidden=True)] = False,
) -> None:
    """Run a pipeline: named steps, each a stage or a command, which start from each other's results.

    All steps are checked before the first one starts. A finished step is skipped if its settings, data and models have
    not changed. A pipeline that was stopped goes on where it was.

    alignkit run config=pipeline/rlhf sft.train.learning_rate=1e-4
    """
    from alignkit.pipeline.file import read_pipeline

    pipeline = read_pipeline(words or [], config_dir, in_chain=step is not None)
    if step is not None:
        from alignkit.pipeline.step import end_with_the_chain, run_step

        if until_closed:
            end_with_the_chain()
        run_step(pipeline, pipeline.step(step, "--step"))
        return
    from alignkit.pipeline.chain import Chain, run_chain, show_plan
    from alignkit.terminal import for_the_result_alone, print_json_lines

    with for_the_result_alone() if json else contextlib.nullcontext():
        chain = Chain.of(pipeline, start=start, only=only)
        result = show_plan(chain, as_json=json) if dry_run else run_chain(chain)
    if json:
        print_json_lines([result])


def demo(
    keep: Annotated[Path, typer.Option(callback=home, help="Folder to write the runs of the demo to.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a tiny model by SFT, a reward model, PPO and DPO.

    It starts from random weights, needs no download, and shows what the model says after each stage.
    """
    from alignkit.demo import show

    show(keep)
