"""The benches of `scripts/bench`: each tells its options, and PPO's run in their smallest form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench"
SHARED = {"made_pairs", "made_policy", "ppo_watch", "side_by_side", "trl_ppo"}
NAMES = sorted({path.stem for path in BENCH.glob("*.py")} - SHARED)


def run(name: str, *words: str) -> str:
    command = [sys.executable, BENCH / f"{name}.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_bench_tells_its_options(name: str) -> None:
    assert "--help" in run(name, "--help")


@pytest.mark.slow
def test_alone_ppo_counts_its_work_and_holds_one_backbone(tmp_path: Path) -> None:
    small = ["--steps=2", "--rounds=1", "--completions=4", "--batch-size=2", "--epochs=1", "--tokens=6"]
    assert "alignkit: LoRA" in run("ppo", "--only", "lora", *small, f"--json={tmp_path}/out.json")
    (found,) = json.loads((tmp_path / "out.json").read_text())["rounds"]
    expected = {"steps": 2, "units": 8, "tokens": 48, "forward passes": 4, "completions in them": 8}
    assert found["lora"]["work"] == expected | {"optimizer steps": 2}
    assert 1.0 < found["lora"]["figures"]["backbones held"] < 1.2


@pytest.mark.slow
def test_sums_tell_what_is_right_before_on_the_way_and_after() -> None:
    before, *later = run("sums", "--sft-steps=2", "--updates=4").split(" → ")
    assert before.startswith("grpo 0.0% (0.0% to ")
    assert len(later) == 4


@pytest.mark.slow
def test_the_parts_of_ppo_are_told_with_the_machine() -> None:
    small = ["--layers=1", "--hidden=64", "--inner=64", "--completions=8", "--tokens=4", "--updates=2"]
    said = run("ppo_parts", *small, "--together=2")
    for part in (
        "machine: ",
        "rollout ",
        "scoring ",
        "update ",
        "weights ",
        "gradients and moments",
        "keys and values ",
    ):
        assert f"\n{part}" in f"\n{said}"
