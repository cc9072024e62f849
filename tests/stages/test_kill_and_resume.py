"""Stages in processes of their own that are killed, interrupted and spoilt, and resumed to the same bits."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

WORDS = ["one", "two", "three", "four", "five", "six"]
ROWS = [{"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}"} for a in WORDS for b in WORDS]
# Nine steps an epoch, so that a checkpoint every twenty lies in the middle of one.
TRAIN = ["train.max_steps=100", "train.per_device_train_batch_size=4", "train.save_steps=20", "train.logging_steps=1"]
SMALLER = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
PAIRS = [{"prompt": f"Say {a} and {b}.", "chosen": f"{a}, {b}", "rejected": a} for a in WORDS for b in WORDS]
BASIS = [*SMALLER, "train.report_to=none", "train.learning_rate=1e-3"]
OF_STAGE = {
    "sft": ["data.path=rows.jsonl", "samples=0"],
    "reward": ["data.path=pairs.jsonl", "template=instruction"],
    "dpo": ["data.path=pairs.jsonl", "template=instruction", "samples=0"],
}
FULL, ADAPTER = ["model.safetensors"], ["adapter_model.safetensors", "base/model.safetensors"]
KINDS = {  # LoRA with dropout: draws count too
    "full": ("sft", [], FULL),
    "lora": ("sft", ["lora=default"], ADAPTER),
    "reward": ("reward", [], FULL),
    "reward-lora": ("reward", ["lora=default"], ADAPTER),
    "dpo": ("dpo", [], FULL),
    "dpo-lora": ("dpo", ["lora=default"], ADAPTER),
}
QUICK = ("full", "dpo-lora")

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def server(fork_server: Any) -> Any:
    for name, rows in {"rows": ROWS, "pairs": PAIRS}.items():
        (fork_server.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return fork_server


@pytest.fixture(scope="module")
def folder(server: Any) -> Path:
    return server.folder


@pytest.fixture(scope="module")
def alignkit(server: Any) -> Start:
    """Run `alignkit STAGE name=NAME …` in `folder`; a signal is sent as soon as a file of the run is there."""

    def start(name: str, *words: str, stage: str = "sft", at: str = "", number: int = 0) -> Any:
        file = server.folder / "runs" / stage / name / at if at else None
        return server.run(stage, f"name={name}", *BASIS, *OF_STAGE[stage], *TRAIN, *words, at=file, number=number)

    return start


@pytest.fixture(scope="module")
def unbroken(alignkit: Start, folder: Path) -> Callable[[str], Path]:
    """The run directory of a training that nothing happened to, of each kind."""
    done: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in done:
            stage, words, _ = KINDS[kind]
            ended = alignkit(kind, *words, stage=stage)
            assert ended.status == 0, ended.said
            done[kind] = folder / "runs" / stage / kind
        return done[kind]

    return run


def bits(run_dir: Path, kind: str = "full") -> list[str]:
    return [hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in KINDS[kind][2]]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def status(run_dir: Path) -> str:
    return json.loads((run_dir / "run.json").read_text())["status"]


def checkpoints(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_killed_in_the_middle_and_resumed_is_never_killed(
    alignkit: Start, unbroken: Any, folder: Path, kind: str
) -> None:
    stage, words, files = KINDS[kind]
    run_dir = folder / "runs" / stage / f"killed-{kind}"
    start = partial(alignkit, stage=stage)
    killed = start(run_dir.name, *words, at="checkpoints/checkpoint-40", number=signal.SIGKILL)
    assert killed.status == -signal.SIGKILL  # it was alive, else the status were its own
    assert status(run_dir) == "running"
    assert not any((run_dir / name).exists() for name in files)
    before = losses(run_dir)
    assert 40 <= before[-1][0] < 100

    refused = start(run_dir.name, *words)
    assert refused.status == 2
    assert refused.said == (
        f"alignkit: runs/{stage}/{run_dir.name} is an unfinished run (running): go on with resume=true, or "
        "overwrite=true to replace it\n"
    )
    resumed = start(run_dir.name, *words, "resume=true")
    assert resumed.status == 0, resumed.said
    assert f"going on from runs/{stage}/{run_dir.name}/checkpoints/checkpoint-" in resumed.said
    assert bits(run_dir, kind) == bits(unbroken(kind), kind)
    assert losses(run_dir) == losses(unbroken(kind))
    assert status(run_dir) == "finished"


def test_killed_before_the_first_checkpoint_begins_at_the_start(alignkit: Start, unbroken: Any, folder: Path) -> None:
    killed = alignkit("early", at="metrics.jsonl", number=signal.SIGKILL)
    assert killed.status == -signal.SIGKILL
    run_dir = folder / "runs/sft/early"
    for path in (run_dir / "checkpoints").glob("*"):
        path.rename(folder / path.name)  # where the kill came late
    resumed = alignkit("early", "resume=true")
    assert resumed.status == 0, resumed.said
    assert "going on from the start: no checkpoint was saved yet" in resumed.said
    assert bits(run_dir) == bits(unbroken("full"))
    assert losses(run_dir) == losses(unbroken("full"))


def test_sigterm_saves_says_so_and_exits_143(alignkit: Start, unbroken: Any, folder: Path) -> None:
    run_dir = folder / "runs/sft/term"
    process = subprocess.Popen(
        [sys.executable, "-m", "alignkit", "sft", "name=term", *BASIS, *OF_STAGE["sft"], *TRAIN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    while not (run_dir / "checkpoints/checkpoint-20").exists():
        assert process.poll() is None, "it ended before there was a checkpoint"
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143
    newest = checkpoints(run_dir)[-1]
    assert 20 < newest < 100
    assert err.splitlines() == [
        "",
        "SIGTERM: saving a checkpoint after this step; once more kills at once",
        f"alignkit: stopped at step {newest}, which is saved: go on with resume=true",
    ]
    assert f"SIGTERM: stopped after step {newest}" in out
    assert status(run_dir) == "interrupted"
    assert not (run_dir / "model.safetensors").exists()
    resumed = alignkit("term", "resume=true")
    assert f"going on from runs/sft/term/checkpoints/checkpoint-{newest}\n" in resumed.said
    assert bits(run_dir) == bits(unbroken("full"))
    assert losses(run_dir) == losses(unbroken("full"))


def test_ctrl_c_exits_130_and_can_be_resumed(alignkit: Start, unbroken: Any, folder: Path) -> None:
    stopped = alignkit("ctrl-c", at="checkpoints/checkpoint-20", number=signal.SIGINT)
    assert stopped.status == 130
    assert "SIGINT: saving a checkpoint after this step; once more kills at once" in stopped.said
    assert stopped.said.splitlines()[-1].endswith("which is saved: go on with resume=true")
    assert "Traceback" not in stopped.said
    assert alignkit("ctrl-c", "resume=true").status == 0
    assert bits(folder / "runs/sft/ctrl-c") == bits(unbroken("full"))


@pytest.mark.parametrize("at", ["run.json", "config.json"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_or_in_the_final_save_is_told_and_recorded(
    alignkit: Start, unbroken: Any, folder: Path, at: str, number: signal.Signals
) -> None:
    run_dir = folder / "runs/sft" / f"early-or-late-{at}-{number}"
    stopped = alignkit(run_dir.name, at=at, number=number)
    assert stopped.status == 128 + number, stopped.said
    assert stopped.said.splitlines()[-1].startswith("alignkit: ")
    assert stopped.said.splitlines()[-1].endswith(": go on with resume=true") or (
        stopped.said.splitlines()[-1].endswith("; go on with resume=true")
    )
    assert "Traceback" not in stopped.said
    assert status(run_dir) == "interrupted"
    resumed = alignkit(run_dir.name, "resume=true")
    assert resumed.status == 0, resumed.said
    assert bits(run_dir) == bits(unbroken("full"))
    assert losses(run_dir) == losses(unbroken("full"))


@pytest.mark.parametrize(("at", "number"), [("run.json", signal.SIGTERM), ("checkpoints/checkpoint-20", signal.SIGINT)])
def test_a_signal_ends_a_sweep_after_the_run_it_met_and_resume_goes_on_with_those_that_began(
    alignkit: Start, folder: Path, at: str, number: signal.Signals
) -> None:
    sweep = folder / "runs/sft" / f"sweep-{number}"
    words = ["--multirun", "seed=1,2,3", "train.max_steps=40"]
    stopped = alignkit(sweep.name, *words, at=f"1/{at}", number=number)
    assert stopped.status == 128 + number, stopped.said
    assert "go on with resume=true" in stopped.said.splitlines()[-1]
    assert {path.name: status(path) for path in sweep.iterdir() if path.is_dir()} == {
        "0": "finished",
        "1": "interrupted",
    }
    resumed = alignkit(sweep.name, *words, "resume=true")
    assert resumed.status == 2
    assert f"runs/sft/{sweep.name}/0 is finished: there is nothing to resume" in resumed.said
    last = f"there is no run in runs/sft/{sweep.name}/2; leave resume out, or resume=auto, to start one"
    assert resumed.said.splitlines()[-1] == f"alignkit: resume=true: {last}"
    assert {path.name: status(path) for path in sweep.iterdir() if path.is_dir()} == {"0": "finished", "1": "finished"}
    alone = alignkit(f"{sweep.name}-alone", *words[2:], "seed=2")
    assert alone.status == 0
    assert bits(sweep / "1") == bits(folder / f"runs/sft/{sweep.name}-alone")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_flipped_bit_in_the_newest_checkpoint_is_found_and_the_one_before_serves(
    alignkit: Start, unbroken: Any, folder: Path, file: str
) -> None:
    name = f"spoilt-{file}"
    run_dir = folder / "runs/sft" / name
    assert alignkit(name, at="checkpoints/checkpoint-40", number=signal.SIGKILL).status == -signal.SIGKILL
    for path in (run_dir / "checkpoints").glob("*.*"):
        path.rename(folder / f"{name}-{path.name}")  # one that was being written when it was killed
    *_, older, newest = checkpoints(run_dir)
    spoilt = run_dir / "checkpoints" / f"checkpoint-{newest}" / file
    content = bytearray(spoilt.read_bytes())
    content[len(content) // 2] ^= 1
    spoilt.write_bytes(content)
    resumed = alignkit(name, "resume=true")
    assert resumed.status == 0, resumed.said
    assert (
        f"passed over checkpoint-{newest}: {file} is not what was written (its checksum differs)\n"
        f"going on from runs/sft/{name}/checkpoints/checkpoint-{older}\n"
    ) in resumed.said
    assert bits(run_dir) == bits(unbroken("full"))
    assert losses(run_dir) == losses(unbroken("full"))


def test_resuming_a_finished_run_changes_nothing_and_says_so(alignkit: Start, unbroken: Any, folder: Path) -> None:
    run_dir = unbroken("full")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run_dir.rglob("*") if path.is_file()}
    again = alignkit("full", "resume=true")
    assert again.status == 0
    assert again.said == "runs/sft/full is finished: there is nothing to resume, and nothing was changed\n"
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run_dir.rglob("*") if p.is_file()} == before


def test_resuming_with_other_settings_is_refused_with_what_changed(alignkit: Start, folder: Path) -> None:
    stopped = alignkit("other", at="checkpoints/checkpoint-20", number=signal.SIGTERM)
    assert stopped.status == 143
    refused = alignkit("other", "resume=true", "train.learning_rate=2e-3", "data.limit=9")
    assert refused.status == 2
    assert refused.said.splitlines() == [
        "alignkit: resume=true: data.limit was null in runs/sft/other and is 9 now",
        "alignkit: resume=true: train.learning_rate was 0.001 in runs/sft/other and is 0.002 now",
        "alignkit: resume with the settings it began with, or start a run of another name",
    ]
