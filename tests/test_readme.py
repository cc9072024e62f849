"""What the README says can be typed, can be typed; what it shows is what comes out."""

import importlib.util
import io
import os
import re
import shlex
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from alignkit import cli
from alignkit.config import JOBS
from alignkit.launch import compose_job
from alignkit.mistakes import in_overrides

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OFFLINE = (
    *("config=configs/smoke/", "config=configs/sweep/", "runs/sft/smoke", "runs/sft/lo", "models/merged"),
    "runs/reward/reward-smoke",
)

Main = Callable[..., int]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of each command, comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def after_alignkit(words: list[str]) -> list[str] | None:
    """What `alignkit` is given, by itself or as a module under a launcher; None where a command is another one."""
    if words[0] == "alignkit":
        return words[1:]
    found = [i for i, pair in enumerate(pairwise(words)) if pair == ("-m", "alignkit")]
    return words[found[0] + 2 :] if found else None


COMMANDS = [words for block in blocks("bash") for words in commands(block)]
OURS = [ours for words in COMMANDS if (ours := after_alignkit(words)) is not None]
RUN = [words for words in OURS if any(start in word for word in words for start in OFFLINE)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the README's commands are typed: the recipes, one's own rows and one's own configuration are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESUME", "false")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Say a.", "chosen": "a!", "rejected": "no"}\n')
    (tmp_path / "prompts.txt").write_text("Repeat the word moon.\nSay goodbye to the toad.\n")
    for block in blocks("python"):
        found = re.match(r"# (\S+\.py)\b", block)
        assert found, "a block of Python begins with the name of its file"
        (tmp_path / found[1]).write_text(block, encoding="utf-8")
    for block in blocks("yaml"):
        found = re.match(r"# (\S+\.yaml)\n", block)
        assert found, "a block of YAML begins with the name of its file"
        (tmp_path / found[1]).write_text(block, encoding="utf-8")
    return tmp_path


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    def main(words: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["alignkit", *words])
        try:
            cli.main()
        except SystemExit as done:
            return int(done.code or 0)
        return 0

    return main


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its parameters, as Typer reads them; a wrong flag is an error."""
    group: Any = typer.main.get_command(cli.app)
    context = group.make_context("alignkit", list(words))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    return name, command.make_context(name, rest, parent=context).params


def test_there_are_commands_of_every_kind() -> None:
    measuring = {"next", "chat", "compare", "evaluate", "merge", "verify", "score"}
    assert {words[0] for words in OURS} >= {"sft", "inspect", "generate", "reward", "dpo", "ppo", *measuring}
    assert {words[0] for words in COMMANDS} == {"bash", "alignkit", "torchrun", "accelerate", "srun"}
    assert len(RUN) >= 20


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_a_command_is_understood_and_its_job_composes(words: list[str]) -> None:
    name, given = parsed([os.path.expandvars(word) for word in words])
    if "config_dir" not in given:  # no stage: it takes runs, and what is left are settings
        settings = [word for word in given["words"] or [] if "=" in word]
        needed = ["data.path=d"] if name in ("evaluate", "score") else []
        job = compose_job(name, [*needed, *settings], model={"name": given.get("run", "m")})
    else:
        job = compose_job(given.get("stage", name), given["words"] or [], config_dir=given["config_dir"])
        assert job.name != "default"
    assert job.model.name


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "bash"], ids=" ".join)
def test_a_script_is_there(words: list[str]) -> None:
    assert (ROOT / words[1]).read_text().startswith("#!/usr/bin/env bash\n")


def test_commands_that_need_nothing_run_in_the_order_they_are_written(
    folder: Path, main: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in RUN:
        short = ["sampling.max_new_tokens=8"] if words[0] in ("sft", "generate") else []
        short += ["train.max_steps=10"] if "name=longer" in words else []
        monkeypatch.setattr(sys, "stdin", io.StringIO("Up?\n"))
        assert main([*words, *short]) == 0, f"{words}: {capsys.readouterr().err}"
        heard = capsys.readouterr()
        assert heard.out or heard.err or "--multirun" in words
    files = re.search(r"The run directory has\n\n(.*?)\n\n", README, re.DOTALL)
    assert files
    named = {name for row in files[1].splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    optional = {"adapter_model.safetensors"}
    if not importlib.util.find_spec("tensorboard"):
        optional.add("tensorboard/")
    found = {f"{path.name}{'/' if path.is_dir() else ''}" for path in (folder / "runs/sft/smoke").iterdir()}
    assert {*named - optional, "config.json", "tokenizer_config.json"} == found
    sweep = [run.parent.name for run in (folder / "runs/sft/sweep").glob("*/run.json")]
    assert sorted(sweep) == ["0", "1", "2"]


@pytest.mark.parametrize("block", blocks("console"))
@pytest.mark.usefixtures("folder")
def test_what_is_shown_is_what_comes_out(block: str, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [part.partition("\n") for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    assert shown
    for command, _, output in shown:
        words = after_alignkit(shlex.split(command))
        assert words is not None
        main(words)
        heard = capsys.readouterr()
        assert output == heard.out + heard.err
        assert output


def test_the_table_of_settings_is_the_one_that_the_script_prints() -> None:
    path = ROOT / "scripts" / "settings_table.py"
    spec = importlib.util.spec_from_file_location("settings_table", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = re.findall(
        r"<!-- settings: python scripts/settings_table.py (.*?) -->\n(.*?)<!-- /settings -->", README, re.DOTALL
    )
    assert {words.split()[0] for words, _ in tables} >= {"sft", "reward", "dpo", "ppo"}
    for words, table in tables:
        assert table.strip() == module.table(*words.split())


def test_settings_named_in_the_text_exist() -> None:
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    words = [word for word in re.findall(r"`([a-z_.]+=[^`]+)`", prose) if not word.startswith("config=")]
    assert len(words) > 3
    assert [word for word in words if all(in_overrides(stage, [word], None) for stage in JOBS)] == []


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)", README) if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
