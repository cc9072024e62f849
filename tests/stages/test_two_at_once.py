"""Several processes train one run; who else asks for it is refused, and a kill leaves it free."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"Say {n}.", "output": f"{n}, {n}"} for n in range(40)]
SMALLER = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
WORDS = ["sft", "name=x", *SMALLER, "data.path=rows.jsonl", "samples=0", "train.report_to=none", "train.max_steps=150"]
WORDS += ["train.save_steps=10", "train.per_device_train_batch_size=2", "train.dataloader_num_workers=1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "-m", "alignkit", *WORDS, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest(run_dir: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in run_dir.glob("checkpoints/checkpoint-*[0-9]")), default=0)


def test_two_ranks_with_data_workers_are_one_writer_until_rank_0_is_killed(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run_dir = tmp_path / "runs/sft/x"
    first = start(tmp_path)
    deadline = time.monotonic() + 240
    while not newest(run_dir):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # or it might end before the others have come
    pid = int(json.loads((run_dir / ".lock").read_text())["pid"])
    os.kill(pid, signal.SIGSTOP)
    for how in ([], ["resume=true"], ["overwrite=true"]):
        command = [sys.executable, "-m", "alignkit", *WORDS, *how]
        other = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert other.returncode == 2
        assert f"alignkit: runs/sft/x is being written by process {pid} on " in other.stderr
        assert "overwrite" not in other.stderr
    os.kill(pid, signal.SIGCONT)
    os.kill(first.pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    # At once, though the other rank and the data workers of both may still live.
    second = start(tmp_path, "resume=true")
    said, _ = second.communicate(timeout=300)
    first.communicate(timeout=60)
    assert second.returncode == 0, said
    assert said.count("going on from ") == 1
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert not (run_dir / ".lock").exists()
