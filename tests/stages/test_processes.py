"""`torchrun -m alignkit sft` trains what one process trains, into one run directory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file

from alignkit.choices import Resume
from alignkit.launch import launch
from alignkit.runs.directory import guard_run
from alignkit.runs.given import Given
from alignkit.runs.manifest import read_manifest

# 37 rows: the last batch of an epoch is not full, and the two processes' shares of it differ.
ROWS = [{"instruction": f"Say {n}.", "output": f"{n}, " * (1 + n % 5)} for n in range(37)]
HELD_OUT = [{"instruction": f"Say {n}.", "output": f"{n}"} for n in range(90, 95)]
# Notes which process reads a row, and which are still connected when they have ended.
FORMAT = """
import atexit
import os

import torch

@atexit.register
def note():
    if "RANK" in os.environ:
        with open(f"connected-{os.environ['RANK']}.txt", "w") as file:
            file.write(str(torch.distributed.is_initialized()))

def convert(row):
    with open(f"read-by-{os.environ.get('WORLD_SIZE', 1)}.txt", "a") as file:
        file.write(os.environ.get("RANK", "0"))
    return {"prompt": row["instruction"], "completion": row["output"]}
"""
GLOBAL_BATCH = 8
WORDS = [
    *("model=tiny_gpt2", "data.path=rows.jsonl", "data.eval_path=held.jsonl", "data.malformed=drop", "samples=2"),
    "data.format=mine.py:convert",
    *("sampling.max_new_tokens=4", "train.num_train_epochs=2", "train.logging_steps=1"),
    # plain gradient steps: Adam's first ones divide rounding by rounding where a gradient is nearly zero
    *("train.optim=sgd", "train.learning_rate=0.03", "train.max_grad_norm=1"),
    *("train.report_to=none", "train.save_steps=4"),
]


def words(name: str, *, num_processes: int) -> list[str]:
    return [f"name={name}", *WORDS, f"train.per_device_train_batch_size={GLOBAL_BATCH // num_processes}"]


def in_two_processes(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "alignkit", "sft", *words(name, num_processes=2)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    return done


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the runs `one` and `two`, of as many processes, and what the two said."""
    folder = tmp_path_factory.mktemp("processes")
    rows = [*ROWS, {"instruction": "no answer", "output": None}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    (folder / "mine.py").write_text(FORMAT)
    two = in_two_processes(folder, "two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        launch("sft", words("one", num_processes=1))
    return folder, two.stdout


@pytest.fixture
def runs(said: tuple[Path, str]) -> dict[str, Path]:
    return {name: said[0] / "runs/sft" / name for name in ("one", "two")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_end_with_the_weights_of_one(runs: dict[str, Path]) -> None:
    one, two = (load_file(runs[name] / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 2e-6


def test_two_processes_measure_what_one_does(runs: dict[str, Path]) -> None:
    one, two = (lines(runs[name] / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [0, *range(1, 6), 5, *range(6, 11), 10]
    for key in ("loss", "eval_loss", "grad_norm"):
        assert [line[key] for line in two if key in line] == pytest.approx(
            [line[key] for line in one if key in line], rel=1e-4, abs=1e-5
        )
    for key in ("tokens", "supervised_tokens"):
        assert [line[key] for line in two if key in line] == [line[key] for line in one if key in line]


def test_every_file_of_the_run_is_written_once(runs: dict[str, Path]) -> None:
    def files(run_dir: Path) -> set[str]:
        return {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if "rng_state" not in path.name}

    assert files(runs["two"]) == files(runs["one"])
    assert sorted(path.name for path in runs["two"].parent.iterdir()) == ["one", "two"]
    ledger = lines(runs["two"] / "rows.jsonl")
    assert ledger == lines(runs["one"] / "rows.jsonl")
    assert [row["source"] for row in ledger] == [
        *(f"rows.jsonl:{n}" for n in range(1, 39)),
        *(f"held.jsonl:{n}" for n in range(1, 6)),
    ]
    assert [row["fate"] for row in ledger].count("dropped") == 1
    assert lines(runs["two"] / "samples.jsonl")[0].keys() == {"prompt", "wanted", "before", "after"}
    assert json.loads((runs["two"] / "run.json").read_text())["status"] == "finished"


def test_rows_are_read_and_encoded_by_one_process(said: tuple[Path, str]) -> None:
    assert (said[0] / "read-by-2.txt").read_text() == "0" * 43
    assert not list(said[0].rglob(".encoded"))


@pytest.mark.slow
def test_rows_that_a_killed_run_left_half_exchanged_are_not_read(said: tuple[Path, str], runs: dict[str, Path]) -> None:
    run_dir = said[0] / "runs/sft/after-a-kill"
    for name in ("000000 train", "000001 gone"):
        rows = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]], "row_index": [0], "source": ["other:1"]})
        rows.save_to_disk(str(run_dir / ".encoded" / name))
    (run_dir / ".encoded/000001 gone/state.json").unlink()  # the kill came before it was written
    in_two_processes(said[0], run_dir.name)
    assert (run_dir / "model.safetensors").read_bytes() == (runs["two"] / "model.safetensors").read_bytes()
    assert not (run_dir / ".encoded").exists()


def test_processes_part_before_they_end(said: tuple[Path, str]) -> None:
    assert {path.name: path.read_text() for path in said[0].glob("connected-*")} == {
        "connected-0.txt": "False",
        "connected-1.txt": "False",
    }


@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_process_knows_that_a_finished_run_is_finished(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)  # one that did not would wait for the others for ever
    given = Given((read_manifest(runs["two"]) or {})["job"])
    with guard_run(runs["two"], stage="sft", given=given, resume=Resume.true, overwrite=False) as run:
        assert (run.finished, run.resuming) == (True, False)


def test_only_one_process_speaks(said: tuple[Path, str], runs: dict[str, Path]) -> None:
    log = (runs["two"] / "log.txt").read_text()
    for text in (
        "all rows",
        "batches   8 rows a step",
        "step 10/10  loss",
        'next: alignkit generate runs/sft/two --prompt "…"',
    ):
        assert said[1].count(text) == 1, said[1]
        assert log.count(text) == 1
