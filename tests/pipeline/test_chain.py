"""A chain that is killed or stopped, and goes on, leaves the bits of one that never was."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from chains import differing, is_alive, kill_at_random, start, wait_for
from small_project import write_project


@pytest.fixture
def fresh(finished: Path, tmp_path: Path) -> Path:
    """The project before its chain has run."""
    write_project(tmp_path)
    shutil.copytree(finished / "runs/sft", tmp_path / "runs/sft")
    return tmp_path


def status(folder: Path, name: str) -> str:
    return str(json.loads((folder / "runs/chain" / name).read_text())["status"])


@pytest.mark.slow
def test_killed_at_random_moments_and_gone_on_with_is_never_killed(fresh: Path, finished: Path) -> None:
    assert kill_at_random(fresh, seed=1, kills=2) >= 1
    assert differing(fresh, finished) == []
    assert status(fresh, "pipeline.json") == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_more_seeds(fresh: Path, finished: Path, seed: int) -> None:
    assert kill_at_random(fresh, seed=seed, kills=4) >= 3
    assert differing(fresh, finished) == []


@pytest.mark.slow
def test_signalled_at_random_moments_and_gone_on_with_is_never_stopped(fresh: Path, finished: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    assert kill_at_random(fresh, seed=5, kills=3, numbers=numbers) >= 1
    assert differing(fresh, finished) == []
    said = (fresh / "said.txt").read_text()
    assert not any(words in said for words in ("Traceback", "internal error", "Exception ignored"))


@pytest.mark.slow
def test_sigterm_lets_the_step_save_and_the_same_command_goes_on(fresh: Path, finished: Path) -> None:
    longer = "sft.train.max_steps=4000"  # so that the signal meets it
    process = start(fresh, longer)
    assert wait_for(fresh / "runs/chain/sft/checkpoints/checkpoint-2", process)
    step = json.loads((fresh / "runs/chain/sft/run.json").read_text())["starts"][-1]["pid"]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert not is_alive(step)
    said = (fresh / "said.txt").read_text().splitlines()
    assert said[-1] == "alignkit: SIGTERM: stopped in the step sft; the same command goes on"
    assert any("which is saved: go on with resume=true" in line for line in said)
    assert (status(fresh, "sft/run.json"), status(fresh, "pipeline.json")) == ("interrupted", "interrupted")

    plan = start(fresh, longer, "--dry-run", "--json")
    assert plan.wait() == 0
    steps: list[Any] = json.loads((fresh / "said.txt").read_text().splitlines()[-1])
    assert steps[0] == {"step": "sft", "does": "resume", "why": ["it was interrupted"]}
    assert [step["does"] for step in steps[1:]] == ["run", "run", "run"]


@pytest.mark.slow
def test_a_killed_chain_leaves_no_step_behind(fresh: Path) -> None:
    process = start(fresh, "sft.train.max_steps=4000")
    assert wait_for(fresh / "runs/chain/sft/checkpoints/checkpoint-2", process)
    step = json.loads((fresh / "runs/chain/sft/run.json").read_text())["starts"][-1]["pid"]
    assert is_alive(step)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while is_alive(step):
        assert time.monotonic() < deadline, "the step goes on alone"
        time.sleep(0.01)
