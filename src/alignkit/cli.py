"""The command line: names and flags only; everything heavy is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from alignkit.cli_runs import runs
from alignkit.errors import AlignkitError, MemoryShortage, OutputError, StopSignal, close_to
from alignkit.home import expand_home
from alignkit.jobs import JOBS


class Commands(TyperGroup):
    """The commands of alignkit; a setting that is typed as an option is answered with how settings are typed."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Of the parser's errors only that of an unknown option has these two; its class has no public name.
            if hasattr(error, "option_name") and hasattr(error, "possibilities"):
                error.message += _settings_hint(error)  # type: ignore[attr-defined]  # see above
            raise


def _settings_hint(error: Any) -> str:
    """Say how a setting is typed, where the command takes settings and has no option that is spelled alike."""
    name, near = error.option_name.lstrip("-"), [option.lstrip("-") for option in error.possibilities or ()]
    if "words" not in [parameter.name for parameter in error.ctx.command.params]:
        return ""
    if name in ("c", "config"):
        return "; a configuration file is given as config=FILE"
    is_short = not error.option_name.startswith("--")
    return "" if is_short or close_to(name, near) else f"; a setting is typed without dashes, as {name}=VALUE"


app = typer.Typer(
    name="alignkit",
    cls=Commands,
    help="Align a pretrained language model by SFT, reward models, DPO and PPO, and measure the result.",
    rich_markup_mode=None,  # Rich doubles the time of --help
    pretty_exceptions_enable=False,  # a traceback with locals can print tokens
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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


def _home(value: Any) -> Any:
    """Expand `~`, which a shell leaves as it is in quotes and behind some equal signs."""
    if isinstance(value, Path):
        return Path(expand_home(str(value)))
    return expand_home(value) if isinstance(value, str) else value


def _complete(context: typer.Context, incomplete: str) -> list[str]:
    from alignkit.completion import complete

    stage = str(context.params.get("stage") or context.info_name)
    words = os.environ.get("COMP_WORDS", "").split()
    if "=" not in words[-2:]:
        return complete(stage, incomplete)
    # Bash cuts words at "=" and puts what is offered in place of the part after it.
    key, value = words[len(words) - 2 - words[::-1].index("=")], incomplete.removeprefix("=")
    return [word.removeprefix(f"{key}=") for word in complete(stage, f"{key}={value}")]


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[config=FILE] [key=value]...",
        help="Configuration files and settings. A later one overrides an earlier one.",
        autocompletion=_complete,
    ),
]
RunsAndWords = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN... [key=value]...",
        help="Run directories, model folders or hub ids, and settings.",
        autocompletion=_complete,
    ),
]
Reward = Annotated[
    str | None,
    typer.Option(callback=_home, help="Reward of a response: file.py:function, a reward run, or CLASSIFIER#LABEL."),
]
Prompt = Annotated[list[str] | None, typer.Option(help="A prompt. It may be given several times.")]
Prompts = Annotated[
    Path | None, typer.Option(callback=_home, help="Data file of prompts. A .txt file holds one prompt per line.")
]
ToolsFile = Annotated[
    Path | None,
    typer.Option("--tools", callback=_home, help="JSON or YAML file with a list of tools that the model may call."),
]
HideReasoning = Annotated[
    bool, typer.Option("--hide-reasoning", help="Do not show what the model thinks before its answer.")
]
Html = Annotated[
    Path | None,
    typer.Option(callback=_home, help="Also write the result to this file, as one self-contained HTML page."),
]
Json = Annotated[Path | None, typer.Option(callback=_home, help="Also write all results to this file, as JSON.")]
JsonLines = Annotated[
    Path | None,
    typer.Option(callback=_home, help="Write the result to this file, as JSON lines, instead of the terminal."),
]
ConfigDir = Annotated[
    Path | None, typer.Option(callback=_home, help="Folder with group options of your own in model/, data/, lora/, …")
]
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


def _runs_and_words(words: list[str]) -> tuple[list[str], list[str]]:
    runs = [expand_home(word) for word in words if "=" not in word]
    skipped = [word for word in runs if _is_beside_runs(Path(word))]
    for word in skipped:
        _tell(f"{word} is skipped: it is no finished run of the sweep")
    return [word for word in runs if word not in skipped], [word for word in words if "=" in word]


def _is_beside_runs(path: Path) -> bool:
    """Tell whether `runs/sft/sweep/*` named this, and not a person: in a sweep, it is no finished run."""
    from alignkit.runs.manifest import read_manifest

    if not (path.parent / "multirun.yaml").is_file():
        return False
    return (read_manifest(path) or {}).get("status") != "finished"


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"alignkit {version('alignkit')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _register(stage: str, what: str, example: str) -> None:
    @app.command(stage, help=f"{what}\n\nalignkit {stage} {example}\n\n{_settings_of(stage)}")
    def command(
        words: Words = None,
        cfg: Cfg = None,
        multirun: Multirun = False,
        config_dir: ConfigDir = None,
        info: Info = None,
        json: Record = False,
    ) -> None:
        _launch(stage, words, cfg, multirun, config_dir, info, json)


def _settings_of(stage: str) -> str:
    """Where the settings of a stage are found, and which there are."""
    fields = dataclasses.fields(JOBS[stage])
    sections = [item.name for item in fields if "Config" in str(item.type) or "dict" in str(item.type)]
    plain = [item.name for item in fields if item.name not in sections]
    return (
        f"Settings are {', '.join(plain)} and the sections {', '.join(sections[:-1])} and {sections[-1]}; "
        f"--cfg job shows them all with their values. The run is written to runs/{stage}/<name>."
    )


for _stage, _texts in STAGES.items():
    _register(_stage, *_texts)


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


@app.command("run")
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


@app.command()
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
            callback=_home,
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


@app.command()
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


@app.command()
def smoke(
    stage: Annotated[str, typer.Argument(help=f"The stage to try: {', '.join(STAGES)}.")],
    words: Words = None,
    keep: Annotated[
        Path | None, typer.Option(callback=_home, help="New folder to leave the tiny model and its runs in.")
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


@app.command()
def generate(
    run: Annotated[str, typer.Argument(callback=_home, help="Run directory, model folder or hub id.")],
    words: Words = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    out: JsonLines = None,
    tools: ToolsFile = None,
    hide_reasoning: HideReasoning = False,
) -> None:
    """Generate responses to prompts.

    The prompts are rendered by the chat template that the model was trained with. Rows of a data file may have tools of
    their own.

    alignkit generate runs/sft/tiny --prompt "Repeat the word." sampling.temperature=0.7 sampling.top_k=50
    """
    from alignkit.launch import command_job

    job, record = command_job("generate", words or [], model={"name": run})
    from alignkit.commands.generate import run as answer

    given: dict[str, Any] = {"prompts": prompt or [], "prompts_path": prompts, "out": out, "record": record}
    answer(job, tools_path=tools, hide_reasoning=hide_reasoning, **given)


@app.command()
def next(
    words: RunsAndWords,
    prompt: Annotated[str, typer.Option(help="The prompt.")],
    response: Annotated[
        str | None, typer.Option(help="Show every token of this response instead of the first one.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(callback=_home, help="Also draw the distribution into this PNG file.")
    ] = None,
) -> None:
    """Show the distribution of the next token.

    For each token: probability and rank, before and after truncation. For the distribution: the entropy.

    alignkit next runs/sft/tiny --prompt "Repeat the word moon." sampling=nucleus temperatures=[0.5,1,2]
    """
    from alignkit.errors import check_writable
    from alignkit.launch import compose_job

    check_writable("--png", png)
    runs, settings = _runs_and_words(words)
    job = compose_job("next", settings, model={"name": runs[0] if runs else ""})
    from alignkit.commands.next import run as show

    show(job, runs=runs, prompt=prompt, response=response, png=png)


@app.command()
def chat(words: RunsAndWords, tools: ToolsFile = None, hide_reasoning: HideReasoning = False) -> None:
    """Chat with one or several models.

    Each model uses the chat template it was trained with. Type /help for the commands of the chat. Where a model calls
    a tool, /result TEXT gives it the result.

    alignkit chat runs/sft/base runs/sft/tuned sampling.temperature=0.7 system="Be brief."
    """
    from alignkit.launch import compose_job

    runs, settings = _runs_and_words(words)
    job = compose_job("chat", settings, model={"name": runs[0] if runs else ""})
    from alignkit.commands.chat import run as talk

    talk(job, runs=runs, lines=_typed_lines(), tools_path=tools, hide_reasoning=hide_reasoning)


def _typed_lines() -> Iterator[str]:
    """What is typed, with a prompt where somebody is there to see it."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("› ")


@app.command()
def compare(
    words: RunsAndWords,
    prompt: Prompt = None,
    prompts: Prompts = None,
    reward: Reward = None,
    html: Html = None,
    out: Json = None,
) -> None:
    """Compare the responses of several models to the same prompts.

    The first model is the baseline.

    alignkit compare runs/sft/base runs/sft/tuned --prompts prompts.txt --html compare.html logprobs=true
    """
    from alignkit.errors import check_writable
    from alignkit.launch import compose_job

    check_writable("--html", html)
    runs, settings = _runs_and_words(words)
    job = compose_job("compare", settings, model={"name": runs[0] if runs else ""})
    from alignkit.commands.compare import run as compared

    compared(job, runs=runs, prompts=prompt or [], prompts_path=prompts, reward=reward, html=html, out=out)


@app.command()
def evaluate(
    words: RunsAndWords,
    reward: Reward = None,
    reference: Annotated[
        str | None, typer.Option(callback=_home, help="Reference model. The KL divergence from it is measured.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            callback=_home,
            help="File of chosen/rejected pairs. The accuracy of the implicit reward is measured on them.",
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Run these lm-eval tasks instead: names or YAML files, with commas between them.")
    ] = None,
    out: Json = None,
) -> None:
    """Measure models on held-out rows, or on tasks of lm-eval.

    Without a data section, the rows are those that the training of the first model held out. Of preference pairs, the
    chosen responses are measured; of a run of PPO, the responses to its held-out prompts.

    alignkit evaluate runs/sft/base runs/sft/tuned --reward my_rewards.py:polite --reference runs/sft/base

    With --tasks, the settings are seed, batch_size, limit and num_fewshot, and the sections model and template.

    alignkit evaluate runs/sft/base runs/sft/tuned --tasks arc_easy,my_task.yaml limit=100
    """
    from alignkit.config import ModelConfig
    from alignkit.errors import ConfigError
    from alignkit.launch import command_job
    from alignkit.runs.manifest import read_manifest

    runs, settings = _runs_and_words(words)
    first = runs[0] if runs else ""
    if tasks is not None:
        _evaluate_tasks(runs, settings, tasks, {"--reward": reward, "--reference": reference, "--pairs": pairs}, out)
        return
    given: dict[str, Any] = {"model": {"name": first}}
    manifest = read_manifest(Path(first)) or {}
    from alignkit.commands.evaluate import run as measured
    from alignkit.evaluate.arguments import check_models, check_new_file

    as_prompts = False
    if not any(word.startswith(("data=", "data.path=", "config=")) for word in settings):
        if manifest.get("stage") not in ("sft", "dpo", "ppo"):
            missing = (
                f"data.path is missing: {first} is no run of alignkit sft, dpo or ppo, which knows what it held out"
            )
            problems = check_models(runs, ModelConfig(first), distinct=True) + check_new_file(out)
            raise ConfigError(*problems, f"{missing}; give it as data.path=…")
        given["data"] = manifest["job"]["data"]
        as_prompts = manifest["stage"] == "ppo"
    job, record = command_job("evaluate", settings, **given)

    asked = {"reward": reward, "reference": reference, "pairs": pairs}
    measured(job, runs=runs, **asked, as_prompts=as_prompts, out=out, record=record)


def _evaluate_tasks(
    runs: list[str], settings: list[str], tasks: str, others: dict[str, str | None], out: Path | None
) -> None:
    from alignkit.errors import ConfigError
    from alignkit.launch import command_job

    if given := [flag for flag, value in others.items() if value is not None]:
        raise ConfigError(
            *(f"{flag} is about held-out rows, and --tasks brings its own: give one of them" for flag in given)
        )
    job, record = command_job("tasks", settings, model={"name": runs[0] if runs else ""})
    from alignkit.commands.tasks import run as measured

    measured(
        job,
        runs=runs,
        tasks=[expand_home(name.strip()) for name in tasks.split(",") if name.strip()],
        out=out,
        record=record,
    )


@app.command()
def merge(
    run: Annotated[str, typer.Argument(callback=_home, help="Run directory, or another folder, with a LoRA adapter.")],
    out: Annotated[Path, typer.Argument(callback=_home, help="Folder to write the merged model to.")],
    words: Words = None,
) -> None:
    """Merge a LoRA adapter into its base model, and check the result.

    The merged model must give the same log-probabilities as the model with the adapter.

    alignkit merge runs/sft/lora models/mine model.dtype=bfloat16
    """
    from alignkit.launch import command_job

    job, record = command_job("merge", words or [], model={"name": run})
    from alignkit.commands.merge import run as merged

    merged(job, out=out, record=record)


@app.command()
def verify(
    run: Annotated[str, typer.Argument(callback=_home, help="Run directory or model folder.")],
    words: Words = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Address of a running OpenAI-compatible server. It is checked instead of the folder."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model on the server, if it serves several.")
    ] = None,
) -> None:
    """Check that a folder, or a running server, serves the model that was trained.

    A server that loads the folder must see the same prompt tokens, stop at the same tokens, and have the same weights.

    alignkit verify runs/sft/smoke --server http://localhost:8000
    """
    from alignkit.launch import compose_job

    job = compose_job("verify", words or [], model={"name": run})
    from alignkit.commands.verify import run as verified

    verified(job, server=server, name=model)


@app.command()
def export(
    run: Annotated[str, typer.Argument(callback=_home, help="Run directory, or folder of a merged model.")],
    to: Annotated[
        str, typer.Option(metavar="PROGRAM", help="Program that serves it: vllm, llama.cpp, ollama; or hub.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that alignkit did not write.")
    ] = False,
) -> None:
    """Print the commands that serve a run as it was trained, and write its model card.

    They give the program the template, the stop tokens and the arguments of the template. The model card is README.md
    in the folder, with data, settings, figures and lineage from the record of the run.

    alignkit export runs/sft/smoke --to vllm
    """
    from alignkit.commands.export import run as exported

    exported(run, to=to, overwrite=overwrite)


@app.command()
def score(
    run: Annotated[str, typer.Argument(callback=_home, help="Run directory of alignkit reward.")],
    words: Words = None,
    pairs: Annotated[
        str | None,
        typer.Option(callback=_home, help="File of chosen/rejected pairs. Their accuracy and margins are measured."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(callback=_home, help="File of prompts with responses. Each row gets a score.")
    ] = None,
    out: JsonLines = None,
) -> None:
    """Score responses with a reward model.

    alignkit score runs/reward/reward-smoke --pairs pairs.jsonl --out scores.jsonl
    """
    from alignkit.errors import ConfigError

    if (pairs is None) == (rows is None):
        raise ConfigError(
            "there is nothing to score: give --pairs FILE or --rows FILE"
            if pairs is None
            else "--pairs and --rows are two kinds of data: give one of them"
        )
    from alignkit.launch import compose_job

    job = compose_job("score", words or [], model={"name": run}, data={"path": pairs or rows})
    from alignkit.commands.score import run as score_all

    score_all(job, pairs=pairs is not None, out=out)


@app.command()
def report(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs or pipelines: a folder, a path below --root, or a name.")
    ],
    root: Annotated[Path, typer.Option(callback=_home, help="Folder that holds the runs.")] = Path("runs"),
    html: Annotated[
        Path | None,
        typer.Option(
            callback=_home,
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


@app.command()
def demo(
    keep: Annotated[Path, typer.Option(callback=_home, help="Folder to write the runs of the demo to.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Train a tiny model by SFT, a reward model, PPO and DPO.

    It starts from random weights, needs no download, and shows what the model says after each stage.
    """
    from alignkit.demo import show

    show(keep)


@app.command()
def repeat(
    run: Annotated[str, typer.Argument(help="Folder of a finished run.")],
    into: Annotated[Path | None, typer.Option(help="The new run directory; RUN-repeat if left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what differs as one JSON object.")] = False,
) -> None:
    """Train a finished run again, and compare the results.

    It trains what the record of the run says. The exit status is 1 where the result is not the same, bit for bit.

    alignkit repeat runs/sft/smoke
    """
    from alignkit.repeat import repeat as again
    from alignkit.repeat import report
    from alignkit.terminal import for_the_result_alone

    with for_the_result_alone() if json else contextlib.nullcontext():
        result = again(Path(expand_home(run)), into)
    report(result, as_json=json)
    if not result.is_same:
        raise typer.Exit(1)


app.add_typer(runs, name="runs")


def main() -> None:
    """Run the command line; the exit status is 0, 2 for the user's mistake, 1 for a bug of ours."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from alignkit.terminal import LineFormatter, steady_streams
    from alignkit.training.signals import name_of, stops_raised

    if logging.lastResort is not None:  # what is said where no run has set up its log
        logging.lastResort.setFormatter(LineFormatter("alignkit: %(message)s"))
    try:
        with steady_streams(_end_if_output_is_lost), stops_raised():
            try:
                app(args=_with_info(sys.argv[1:]))
            finally:
                sys.stdout.flush()
    except StopSignal as stop:
        _tell(f"stopped by {name_of(stop.number)}")
        sys.exit(128 + stop.number)
    except AlignkitError as error:
        # Once, not once a process, but for what only one of them knows.
        is_ours = os.environ.get("RANK", "0") == "0" or isinstance(error, MemoryShortage)
        for line in error.shown if is_ours else ():
            _tell(line)
        sys.exit(error.exit_status)
    except Exception as error:
        if os.environ.get("ALIGNKIT_DEBUG"):
            raise
        _tell(f"internal error: {_brief(error)}; the traceback is in {_traceback_file(error)}")
        sys.exit(1)


def _tell(line: str) -> None:
    """Print one line to standard error, whatever is in it and whoever still reads."""
    from alignkit.terminal import in_a_line

    with contextlib.suppress(OSError):
        typer.echo(f"alignkit: {in_a_line(line)}", err=True)


def _end_if_output_is_lost(name: str, error: OSError) -> None:
    """End a command that nobody reads any more; results are printed to standard output alone."""
    if name != "standard output":
        return
    if isinstance(error, BrokenPipeError):
        sys.exit(128 + signal.SIGPIPE)  # as if it had not been caught: `| head -1` has what it wanted
    raise OutputError(f"{name} cannot be written: {error.strerror}") from error


def _with_info(argv: list[str]) -> list[str]:
    """`--info` alone means `--info all`, as in Hydra."""
    at = argv.index("--info") if "--info" in argv else -1
    if at >= 0 and (at + 1 == len(argv) or "=" in argv[at + 1] or argv[at + 1].startswith("-")):
        return [*argv[: at + 1], "all", *argv[at + 1 :]]
    return argv


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _traceback_file(error: Exception) -> str:
    """Where the traceback is: the run's own log, or a file made for it."""
    import tempfile
    import traceback

    if notes := getattr(error, "__notes__", []):
        return str(notes[-1])
    with tempfile.NamedTemporaryFile("w", prefix="alignkit-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return file.name


if __name__ == "__main__":
    main()
