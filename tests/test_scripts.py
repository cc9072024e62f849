"""The chains in scripts/ run as they are typed, from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEWER = {"dpo": ["sft", "dpo"], "rlhf": ["sft", "reward", "ppo"]}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["dpo", "rlhf"])
def test_a_chain_leaves_a_finished_run_of_each_stage(script: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "scripts" / f"{script}.sh"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stage in FEWER[script]:
        assert '"status": "finished"' in (tmp_path / "runs" / stage / script / "run.json").read_text()


@pytest.mark.parametrize("script", FEWER)
def test_a_chain_that_is_given_too_little_says_how_it_is_used(script: str) -> None:
    done = subprocess.run(
        ["bash", ROOT / "scripts" / f"{script}.sh", "name"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"bash scripts/{script}.sh NAME MODEL ROWS PAIRS" in done.stdout


def test_words_reach_the_stages_they_are_meant_for(tmp_path: Path) -> None:
    said = tmp_path / "alignkit"
    said.write_text('#!/bin/bash\necho "$@"\n')  # tells what each stage would be given
    said.chmod(0o755)
    words = ["mine", "base", "rows.jsonl", "pairs.jsonl", "seed=1", "sft:template=chatml", "ppo:ppo.num_updates=9"]
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "rlhf.sh", *words],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    sft, reward, ppo = done.stdout.splitlines()
    assert all(" seed=1" in line for line in (sft, reward, ppo))
    assert [" template=chatml" in line for line in (sft, reward, ppo)] == [True, False, False]
    assert [" ppo.num_updates=9" in line for line in (sft, reward, ppo)] == [False, False, True]


@pytest.mark.parametrize(
    ("end", "held"),
    [
        ("oldest", ["peft==0.21", "transformers==5.23", "trl==1.16"]),
        ("newest", []),
        ("pinned", ["peft==0.21.2", "transformers==5.23.0", "trl==1.16.0"]),
    ],
)
def test_ci_holds_the_libraries_to_an_end_of_their_range(end: str, held: list[str], tmp_path: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["bash", ROOT / ".ci" / "upstream", end, tmp_path], check=True)
    before, after = ((folder / "constraints.txt").read_text().splitlines() for folder in (ROOT, tmp_path))
    assert [line for line in after if line.startswith(("peft==", "transformers==", "trl=="))] == held
    assert len(set(before) - set(after)) == {"oldest": 3, "newest": 3, "pinned": 0}[end]
