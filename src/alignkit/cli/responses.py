"""`alignkit generate`, `next`, `chat` and `compare`: what models say."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.cli.arguments import (
    HideReasoning,
    Html,
    Json,
    JsonLines,
    Prompt,
    Prompts,
    Reward,
    RunsAndWords,
    ToolsFile,
    Words,
    home,
    models_told_too,
    runs_and_words,
)


def generate(
    run: Annotated[str, typer.Argument(callback=home, help="Run directory, model folder or hub id.")],
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

    job, record = command_job(
        "generate", words or [], also=partial(_unanswerable, prompt, prompts), model={"name": run}
    )
    from alignkit.commands.generate import run as answer

    given: dict[str, Any] = {"prompts": prompt or [], "prompts_path": prompts, "out": out, "record": record}
    answer(job, tools_path=tools, hide_reasoning=hide_reasoning, **given)


def _unanswerable(prompt: list[str] | None, prompts: Path | None, job: Any) -> list[str]:
    """What is wrong with the prompts, found before anything heavy is imported."""
    from alignkit.evaluate.prompts import check_prompts

    return check_prompts(prompt or [], prompts, format=job.format, columns=job.columns)


def next_token(
    words: RunsAndWords,
    prompt: Annotated[str, typer.Option(help="The prompt.")],
    response: Annotated[
        str | None, typer.Option(help="Show every token of this response instead of the first one.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(callback=home, help="Also draw the distribution into this PNG file.")
    ] = None,
) -> None:
    """Show the distribution of the next token.

    For each token: probability and rank, before and after truncation. For the distribution: the entropy.

    alignkit next runs/sft/tiny --prompt "Repeat the word moon." sampling=nucleus temperatures=[0.5,1,2]
    """
    from alignkit.errors import check_writable
    from alignkit.launch import compose_job

    check_writable("--png", png)
    runs, settings = runs_and_words(words)
    with models_told_too(runs):
        job = compose_job("next", settings, model={"name": runs[0] if runs else ""})
    from alignkit.commands.next import run as show

    show(job, runs=runs, prompt=prompt, response=response, png=png)


def chat(words: RunsAndWords, tools: ToolsFile = None, hide_reasoning: HideReasoning = False) -> None:
    """Chat with one or several models.

    Each model uses the chat template it was trained with. Type /help for the commands of the chat. Where a model calls
    a tool, /result TEXT gives it the result.

    alignkit chat runs/sft/base runs/sft/tuned sampling.temperature=0.7 system="Be brief."
    """
    from alignkit.launch import compose_job

    runs, settings = runs_and_words(words)
    with models_told_too(runs):
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
    runs, settings = runs_and_words(words)
    also = partial(_unanswerable, prompt, prompts)
    with models_told_too(runs):
        job = compose_job("compare", settings, also=also, model={"name": runs[0] if runs else ""})
    from alignkit.commands.compare import run as compared

    compared(job, runs=runs, prompts=prompt or [], prompts_path=prompts, reward=reward, html=html, out=out)
