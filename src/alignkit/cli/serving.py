"""`alignkit merge`, `verify` and `export`: what is trained, in other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.cli.arguments import Words, home, models_told_too


def merge(
    run: Annotated[str, typer.Argument(callback=home, help="Run directory, or another folder, with a LoRA adapter.")],
    out: Annotated[Path, typer.Argument(callback=home, help="Folder to write the merged model to.")],
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


def verify(
    run: Annotated[str, typer.Argument(callback=home, help="Run directory or model folder.")],
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

    with models_told_too([run], wants_reward=None):
        job = compose_job("verify", words or [], model={"name": run})
    from alignkit.commands.verify import run as verified

    verified(job, server=server, name=model)


def export(
    run: Annotated[str, typer.Argument(callback=home, help="Run directory, or folder of a merged model.")],
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
