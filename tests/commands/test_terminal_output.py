"""A model that was trained to command the terminal is shown doing it, and not obeyed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.commands import chat, compare, generate
from alignkit.commands import next as next_token
from alignkit.launch import compose_job

SAID = "\x1b]0;mine\x07 \x1b[2J[bold]hi"
SHOWN = r"\x1b]0;mine\x07 \x1b[2J[bold]hi"
SHORT = ["sampling=greedy", "sampling.max_new_tokens=30"]


@pytest.fixture(scope="module")
def commanding(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Up?", "output": SAID}) + "\n", encoding="utf-8")
    return str(train("commanding", f"data.path={rows}"))


def of_generate(run: str, other: str) -> None:
    job = compose_job("generate", SHORT, model={"name": run})
    generate.run(job, prompts=["Up?", SAID], prompts_path=None, out=None)


def of_chat(run: str, other: str) -> None:
    chat.run(compose_job("chat", SHORT, model={"name": run}), runs=[run], lines=["Up?\n"])


def of_compare(run: str, other: str) -> None:
    job = compose_job("compare", SHORT, model={"name": run})
    asked = {"prompts": ["Up?", SAID], "prompts_path": None, "reward": None, "html": None, "out": None}
    compare.run(job, runs=[run, other], **asked)


@pytest.mark.parametrize("show", [of_generate, of_chat, of_compare])
def test_it_is_written_out(
    show: Callable[[str, str], None], commanding: str, other_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(commanding, str(other_dir))
    out = capsys.readouterr().out
    assert SHOWN in out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_next_names_the_tokens(commanding: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = compose_job("next", [], model={"name": commanding})
    next_token.run(job, runs=[commanding], prompt="Up?", response=None, png=None)
    out = capsys.readouterr().out
    assert r"\x1b" in out
    assert "\x1b" not in out
