"""`alignkit sft`, `reward`, `dpo` and `ppo`, and what shows a stage before it is run: `inspect`, `plan` and `smoke`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.cli.arguments import ConfigDir, Html, Words, home
from alignkit.jobs import JOBS

# What each stage does, and an example of its settings.
STAGES = {
    "sft": (
        "Train a model by supervised fine-tuning (SFT). The loss sees the responses, not the prompts.",
        "config=smoke/sft train.learning_rate=1e-4",
    ),
    "reward": (
        "Train a reward model on chosen/rejected pairs. Its accuracy is measured on held-out pairs.",
        "config=smoke/reward model=run model.name=runs/sft/smoke template=native",
    ),
    "dpo": (
        "Train a policy by direct preference optimization (DPO). It learns from chosen/rejected pairs, without a "
        "reward model.",
        "config=smoke/dpo model=run model.name=runs/sft/smoke template=native train.beta=0.1",
    ),
    "ppo": (
        "Train a policy by PPO against any reward. A reward is a reward model, a classifier, a Python function, or a "
        "verifier of answers: math, exact, regex, format or length.",
        "config=smoke/ppo ppo.num_updates=20",
    ),
}
SHOWN = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
Cfg = Annotated[str | None, typer.Option(help="Print the composed configuration (job, hydra or all), and run nothing.")]
Record = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the record of the finished run to standard output, as one line, and all else elsewhere."
    ),
]
Multirun = Annotated[
    bool, typer.Option("--multirun", "-m", help="Run every combination of the settings that have several values.")
]
Info = Annotated[
    str | None, typer.Option(help=f"Print how the configuration is composed ({', '.join(INFO)}), and run nothing.")
]


def stage_command(stage: str) -> Callable[..., None]:
    """The command that trains a stage."""

    def command(
        words: Words = None,
        cfg: Cfg = None,
        multirun: Multirun = False,
        config_dir: ConfigDir = None,
        info: Info = None,
        json: Record = False,
    ) -> None:
        _launch(stage, words, cfg, multirun, config_dir, info, json)

    return command


def stage_help(stage: str) -> str:
    """The help of that command: what it does, an example, where its settings are found."""
    what, example = STAGES[stage]
    return f"{what}\n\nalignkit {stage} {example}\n\n{_settings_of(stage)}"


def _settings_of(stage: str) -> str:
    """Where the settings of a stage are found, and which there are."""
    fields = dataclasses.fields(JOBS[stage])
    sections = [item.name for item in fields if "Config" in str(item.type) or "dict" in str(item.type)]
    plain = [item.name for item in fields if item.name not in sections]
    return (
        f"Settings are {', '.join(plain)} and the sections {', '.join(sections[:-1])} and {sections[-1]}; "
        f"--cfg job shows them all with their values. The run is written to runs/{stage}/<name>."
    )


def _launch(
    stage: str,
    words: list[str] | None,
    cfg: str | None,
    multirun: bool,
    config_dir: Path | None,
    info: str | None,
    json: bool,
) -> None:
    from alignkit.errors import ConfigError, did_you_mean
    from alignkit.launch import launch
    from alignkit.terminal import for_the_result_alone, print_json_lines

    if cfg is not None and cfg not in SHOWN:
        raise ConfigError(f"--cfg {cfg}: choose {', '.join(SHOWN)}{did_you_mean(cfg, SHOWN)}")
    if info is not None and info not in INFO:
        raise ConfigError(f"--info {info}: choose {', '.join(INFO)}{did_you_mean(info, INFO)}")
    if json and (cfg or info):
        raise ConfigError("--json prints the record of a run, --cfg and --info run nothing: give one of them")
    with for_the_result_alone() if json else contextlib.nullcontext():
        record = launch(stage, words or [], config_dir=config_dir, multirun=multirun, show=cfg, info=info)
    if json and os.environ.get("RANK", "0") == "0":
        print_json_lines([record])


def inspect(
    stage: Annotated[str, typer.Argument(help=f"The stage whose data to show: {', '.join(STAGES)}.")],
    words: Words = None,
    rows: Annotated[int, typer.Option(help="Number of rows to show.", min=0)] = 5,
    html: Html = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per kept row, and nothing else.")] = False,
    assert_: Annotated[
        Path | None,
        typer.Option(
            "--assert",
            callback=home,
            help="Compare with a saved output of --json. Where they differ, show how and exit with status 2.",
        ),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Show the tokens and the loss mask of each row.

    For ppo, show the prompts. No weights are loaded.
    """
    from importlib import import_module

    from alignkit.errors import check_writable

    check_writable("--html", html)
    job = _composed_stage("inspect", stage, words, config_dir)
    from alignkit.commands.inspect import run as show

    view = import_module(f"alignkit.stages.{stage}.data").view(job)
    show(view, num_rows=rows, html=html, as_json=json, golden=assert_)


def plan(
    stage: Annotated[str, typer.Argument(help=f"The stage to plan: {', '.join(STAGES)}.")],
    words: Words = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory it must fit into, such as 24GB; the GPU's own if there is one here.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Number of processes, each with its own GPU.", min=1)] = 1,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Plan for a GPU with bfloat16, where this machine has none.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take a real step of the longest batch on the device here.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Show the memory, tokens and steps that a stage takes, without loading weights.

    alignkit plan sft config=sft/smollm2_135m_lora data.path=data.json --gpu --memory 24GB
    """
    from importlib import import_module

    from alignkit.planning.sizes import parse_size

    job = _composed_stage("plan", stage, words, config_dir)
    if memory is not None:
        parse_size(memory)
    from alignkit.commands.plan import run as show
    from alignkit.stages.planned import for_device

    planned = import_module(f"alignkit.stages.{stage}.plan").rehearsal
    show(
        partial(planned, for_device(job, gpu=gpu), processes=processes),
        memory=memory,
        processes=processes,
        measure=measure,
        as_json=json,
    )


def smoke(
    stage: Annotated[str, typer.Argument(help=f"The stage to try: {', '.join(STAGES)}.")],
    words: Words = None,
    keep: Annotated[
        Path | None, typer.Option(callback=home, help="New folder to leave the tiny model and its runs in.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")] = False,
    config_dir: ConfigDir = None,
) -> None:
    """Try a job on a tiny random model of the same architecture, in under a minute.

    It takes two steps on your data in your template, resumes, loads the result and asks it. The exit status is not 0
    where anything fails. Nothing is left behind.

    alignkit smoke sft config=sft/smollm2_135m_lora data.path=data.json
    """
    job = _composed_stage("smoke", stage, words, config_dir)
    from alignkit.smoke.trial import report, try_out

    report(try_out(job, keep=keep), as_json=json)


def _composed_stage(command: str, stage: str, words: list[str] | None, config_dir: Path | None) -> Any:
    from alignkit.errors import ConfigError, did_you_mean
    from alignkit.launch import compose_job

    if stage not in STAGES:
        raise ConfigError(
            f"{command}: there is no stage '{stage}', only {', '.join(STAGES)}{did_you_mean(stage, STAGES)}"
        )
    return compose_job(stage, words or [], config_dir=config_dir)
