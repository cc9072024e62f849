"""`torchrun --max-restarts` starts all processes again where one ended: the run goes on from its newest checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Its process of rank 1 is gone at the third step of the first attempt.
FORMAT = """
import os

from alignkit.training.watched import WatchedTrainer

first, step = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0", WatchedTrainer.training_step

def dies(self, *args, **kwargs):
    if first and os.environ["RANK"] == "1" and self.state.global_step == 2:
        os._exit(1)
    return step(self, *args, **kwargs)

WatchedTrainer.training_step = dies

def convert(row):
    return row
"""


@pytest.mark.slow
def test_processes_that_are_started_again_go_on_with_their_run(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {n}.", "completion": str(n)} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dies.py").write_text(FORMAT)
    words = ["model=tiny_gpt2", "data.path=rows.jsonl", "data.format=dies.py:convert", "samples=0", "name=it"]
    words += ["train.max_steps=4", "train.save_steps=1", "train.report_to=none", "train.logging_steps=1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    done = subprocess.run(
        [*torchrun, "-m", "alignkit", "sft", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert "going on from runs/sft/it/checkpoints/checkpoint-2" in done.stdout
    assert "internal error" not in done.stdout
    record = json.loads((tmp_path / "runs/sft/it/run.json").read_text())
    assert (record["status"], len(record["starts"])) == ("finished", 2)
    assert not (tmp_path / "runs/sft/it/.lock").exists()
