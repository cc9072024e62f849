"""`alignkit ppo` killed at random moments, some of them in the middle of a save, is the run that was never killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

UPDATES = 24
SMALLER = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
WORDS = [
    *SMALLER,
    *("template=instruction", "data.path=rows.jsonl", "data.eval_fraction=0.25", "train.report_to=none", "samples=1"),
    *("reward=[{function: 'rewards.py:length'}]", f"ppo.num_updates={UPDATES}", "ppo.num_prompts=8"),
    *("ppo.num_mini_batches=2", "train.per_device_train_batch_size=4", "sampling.max_new_tokens=6"),
    *("train.learning_rate=1e-3", "train.save_steps=2", "train.eval_steps=2", "train.lr_scheduler_type=cosine"),
    # everything that a checkpoint has to hold
    *(
        "ppo.kl_target=3",
        "ppo.kl_horizon=100",
        "ppo.score_scaling=running",
        "sampling.temperature={start: 1, end: 1.5}",
    ),
]
KINDS = {"full": [], "lora": ["lora=ppo"]}
REWARDS = "def length(prompts, completions, **columns):\n    return [len(c) / 10 for c in completions]\n"
TIMED = ("seconds/", "tokens_per_second")


# Forks a process for each command line, so that the seconds of imports are paid once.
SERVER = """
import json, os, sys
import alignkit.launch, alignkit.stages.ppo.run, matplotlib.figure, matplotlib.backends.backend_agg
from alignkit import cli
for line in sys.stdin:
    if pid := os.fork():
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    sys.stdin.close()
    os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    sys.argv = ["alignkit", *json.loads(line)]
    status = 0
    try:
        cli.main()
    except SystemExit as done:
        status = int(done.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)
"""


@dataclass
class Ended:
    """How a process ended: its exit status (−9 for SIGKILL), and all that it said."""

    status: int
    said: str


class Server:
    """Forks a process for each command line, and kills it when told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )

    def start(self, *words: str) -> int:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin
        assert stdout
        stdin.write(json.dumps(["ppo", *words]) + "\n")
        stdin.flush()
        return int(stdout.readline())

    def wait(self) -> Ended:
        assert self.process.stdout
        return Ended(int(self.process.stdout.readline()), (self.folder / "said.txt").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ppo-killed")
    rows = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARDS)
    server = Server(folder)
    yield server
    assert server.process.stdin
    server.process.stdin.close()
    server.process.wait()


def bits(run_dir: Path) -> dict[str, str]:
    """Of the result and of the last checkpoint: policy, value head, optimizer, schedule, controller, statistics."""
    files = [*run_dir.glob("*.safetensors"), *run_dir.glob("base/*.safetensors")]
    files += [run_dir / "checkpoints" / f"checkpoint-{UPDATES}" / name for name in LAST]
    found = {str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert len(found) >= 2 + len(LAST)
    return found


LAST = ("value_head.safetensors", "optimizer.pt", "scheduler.pt", "ppo_state.json")


def measured(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIMED)} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_and_resumed_is_never_killed(server: Server, kind: str) -> None:
    num_kills = int(os.environ.get("ALIGNKIT_TEST_KILLS", "4"))
    whole, killed = (server.folder / "runs/ppo" / f"{name}-{kind}" for name in ("whole", "killed"))
    began = time.monotonic()
    server.start(f"name={whole.name}", *WORDS, *KINDS[kind])
    ended = server.wait()
    assert ended.status == 0, ended.said
    seconds = time.monotonic() - began

    draw, in_a_save, resume = random.Random(kind), 0, []
    for number in range(num_kills):
        pid = server.start(f"name={killed.name}", *WORDS, *KINDS[kind], *resume)
        patience = time.monotonic() + draw.uniform(0.1, 1.2 / num_kills) * seconds
        in_save = number % 2 == 0  # hunts for the next save
        while Path(f"/proc/{pid}/stat").exists():
            if time.monotonic() > patience and (not in_save or list(killed.glob("checkpoints/*.partial"))):
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.0005)
        ended = server.wait()
        if ended.status == 0:
            break  # it was done before; what follows is true all the same
        assert ended.status == -signal.SIGKILL, ended.said  # alive when it was killed
        in_a_save += bool(list(killed.glob("checkpoints/*.partial")))
        resume = ["resume=true"] if (killed / "run.json").exists() else []
    if ended.status:
        server.start(f"name={killed.name}", *WORDS, *KINDS[kind], *resume)
        ended = server.wait()
        assert ended.status == 0, ended.said
    assert in_a_save
    assert bits(killed) == bits(whole)
    assert measured(killed) == measured(whole)
    rollouts = [(run / "rollouts.jsonl").read_bytes() for run in (killed, whole)]
    assert rollouts[0] == rollouts[1]
    assert (killed / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_sigterm_saves_after_the_update_and_can_be_resumed(server: Server) -> None:
    whole, stopped = (server.folder / "runs/ppo" / name for name in ("whole-full", "stopped"))
    if not (whole / "model.safetensors").exists():
        server.start(f"name={whole.name}", *WORDS)
        assert server.wait().status == 0
    pid = server.start(f"name={stopped.name}", *WORDS)
    while not list(stopped.glob("checkpoints/checkpoint-4")):
        assert Path(f"/proc/{pid}/stat").exists()
        time.sleep(0.002)
    os.kill(pid, signal.SIGTERM)
    ended = server.wait()
    assert ended.status == 128 + signal.SIGTERM
    assert "which is saved: go on with resume=true" in ended.said.splitlines()[-1]
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    server.start(f"name={stopped.name}", *WORDS, "resume=true")
    ended = server.wait()
    assert ended.status == 0, ended.said
    assert bits(stopped) == bits(whole)
    assert measured(stopped) == measured(whole)
