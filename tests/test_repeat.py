"""A run made again from its record."""

import json
import shutil
from pathlib import Path

import pytest

from alignkit.cli import app
from alignkit.errors import RunError
from alignkit.launch import launch
from alignkit.repeat import repeat

ROWS = [
    {"instruction": f"Say {word}.", "output": word} for word in ("mu", "nu", "xi", "pi", "rho", "tau", "phi", "psi")
]
WORDS = ["model=tiny_gpt2", "data.path=rows.jsonl", "train.max_steps=3", "train.report_to=none", "samples=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run was made that dropped out at random, of rows beside it."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    launch("sft", [*WORDS, "name=a", "seed=3", "model.config.resid_pdrop=0.1", "train.logging_steps=1"])
    return tmp_path


def test_a_run_comes_out_the_same_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    result = repeat(Path("../runs/sft/a"))
    assert result.is_same
    assert not result.found
    assert Path.cwd() == folder / "elsewhere"
    assert result.folder == folder / "runs" / "sft" / "a-repeat"
    assert (result.folder / "model.safetensors").read_bytes() == (folder / "runs/sft/a/model.safetensors").read_bytes()


def test_what_came_out_otherwise_is_named(folder: Path) -> None:
    lines = (folder / "runs/sft/a/metrics.jsonl").read_text().splitlines()
    changed = json.loads(lines[1]) | {"loss": 1.0}
    (folder / "runs/sft/a/metrics.jsonl").write_text("\n".join([lines[0], json.dumps(changed), *lines[2:]]))
    result = repeat(folder / "runs/sft/a", folder / "again")
    assert result.found.first_step is not None
    assert result.found.first_step[:3] == (2, "loss", 1.0)
    assert not result.is_same


def test_a_run_is_found_by_its_name(folder: Path) -> None:
    app(["repeat", "a", "--into", str(folder / "again")], standalone_mode=False)
    assert (folder / "again/model.safetensors").is_file()
    with pytest.raises(RunError, match=r"^there is no run b below runs"):
        app(["repeat", "b"], standalone_mode=False)


def test_a_byte_of_the_data_that_changed_is_named(folder: Path) -> None:
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text().replace("psi", "psy", 1))
    with pytest.raises(RunError, match=r"the data train rows.jsonl has changed since .*runs/sft/a began"):
        repeat(folder / "runs/sft/a")
    assert not Path("runs/sft/a-repeat").exists()


def test_what_is_gone_is_named(folder: Path) -> None:
    launch("sft", [*WORDS[1:], "name=b", "model=run", "model.name=runs/sft/a"])
    shutil.rmtree("runs/sft/a")
    with pytest.raises(RunError, match=r"runs/sft/a(.|\n)*runs/sft/b cannot be repeated without it"):
        repeat(folder / "runs/sft/b")


def test_only_a_finished_run_of_a_stage_is_repeated(folder: Path) -> None:
    record = folder / "runs/sft/a/run.json"
    content = json.loads(record.read_text())
    for change, line in [
        ({"status": "failed"}, "is failed: there is no result to compare with"),
        ({"stage": "merge"}, "was made by alignkit merge, which has nothing to train"),
        ({"format": 99}, "was written by a later alignkit"),
        ({"job": content["job"] | {"train": {"hub_token": "***"}}}, "does not hold the values of train.hub_token"),
    ]:
        record.write_text(json.dumps(content | change))
        with pytest.raises(RunError, match=line):
            repeat(folder / "runs/sft/a")
    with pytest.raises(RunError, match="is no run of alignkit"):
        repeat(folder)
