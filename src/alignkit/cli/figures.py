"""`alignkit evaluate` and `score`: how good models and responses are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.cli.arguments import Json, JsonLines, Reward, RunsAndWords, Words, home, models_told_too, runs_and_words
from alignkit.home import expand_home


def evaluate(
    words: RunsAndWords,
    reward: Reward = None,
    reference: Annotated[
        str | None, typer.Option(callback=home, help="Reference model. The KL divergence from it is measured.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            callback=home,
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

    runs, settings = runs_and_words(words)
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
    with models_told_too(runs):
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
    with models_told_too(runs):
        job, record = command_job("tasks", settings, model={"name": runs[0] if runs else ""})
    from alignkit.commands.tasks import run as measured

    measured(
        job,
        runs=runs,
        tasks=[expand_home(name.strip()) for name in tasks.split(",") if name.strip()],
        out=out,
        record=record,
    )


def score(
    run: Annotated[str, typer.Argument(callback=home, help="Run directory of alignkit reward.")],
    words: Words = None,
    pairs: Annotated[
        str | None,
        typer.Option(callback=home, help="File of chosen/rejected pairs. Their accuracy and margins are measured."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(callback=home, help="File of prompts with responses. Each row gets a score.")
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

    with models_told_too([run], wants_reward=True):
        job = compose_job("score", words or [], model={"name": run}, data={"path": pairs or rows})
    from alignkit.commands.score import run as score_all

    score_all(job, pairs=pairs is not None, out=out)
