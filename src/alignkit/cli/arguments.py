"""Arguments and options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.cli.ends import tell
from alignkit.home import expand_home


def home(value: Any) -> Any:
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
    typer.Option(callback=home, help="Reward of a response: file.py:function, a reward run, or CLASSIFIER#LABEL."),
]
Prompt = Annotated[list[str] | None, typer.Option(help="A prompt. It may be given several times.")]
Prompts = Annotated[
    Path | None, typer.Option(callback=home, help="Data file of prompts. A .txt file holds one prompt per line.")
]
ToolsFile = Annotated[
    Path | None,
    typer.Option("--tools", callback=home, help="JSON or YAML file with a list of tools that the model may call."),
]
HideReasoning = Annotated[
    bool, typer.Option("--hide-reasoning", help="Do not show what the model thinks before its answer.")
]
Html = Annotated[
    Path | None,
    typer.Option(callback=home, help="Also write the result to this file, as one self-contained HTML page."),
]
Json = Annotated[Path | None, typer.Option(callback=home, help="Also write all results to this file, as JSON.")]
JsonLines = Annotated[
    Path | None,
    typer.Option(callback=home, help="Write the result to this file, as JSON lines, instead of the terminal."),
]
ConfigDir = Annotated[
    Path | None, typer.Option(callback=home, help="Folder with group options of your own in model/, data/, lora/, …")
]


def runs_and_words(words: list[str]) -> tuple[list[str], list[str]]:
    runs = [expand_home(word) for word in words if "=" not in word]
    skipped = [word for word in runs if _is_beside_runs(Path(word))]
    for word in skipped:
        tell(f"{word} is skipped: it is no finished run of the sweep")
    return [word for word in runs if word not in skipped], [word for word in words if "=" in word]


@contextmanager
def models_told_too(names: Sequence[str], *, wants_reward: bool | None = False) -> Iterator[None]:
    """Tell what is wrong with the models that a command names along with the mistakes in its settings.

    Where the settings are right, the command itself looks at the models, with all else that it is given.
    """
    from alignkit.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        from alignkit.config import ModelConfig
        from alignkit.models.source import ModelSource, source_problems

        sources = [ModelSource.of(ModelConfig(name)) for name in names]
        more = [line for source in sources for line in source_problems(source, wants_reward=wants_reward)]
        raise ConfigError(*dict.fromkeys([*error.problems, *more])) from None


def _is_beside_runs(path: Path) -> bool:
    """Tell whether `runs/sft/sweep/*` named this, and not a person: in a sweep, it is no finished run."""
    from alignkit.runs.manifest import read_manifest

    if not (path.parent / "multirun.yaml").is_file():
        return False
    return (read_manifest(path) or {}).get("status") != "finished"
