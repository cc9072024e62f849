"""Small jobs on a tiny random model, rows for them, and processes that a test may kill."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit.jobs import SftJob
from alignkit.launch import compose_job

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ROWS: list[dict[str, Any]] = [
    {"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}" + ", and so on" * (i % 4)}
    for i, (a, b) in enumerate((a, b) for a in NUMBERS for b in NUMBERS[:3])
]

Job = Callable[..., SftJob]

# accelerate turns FSDP off on a CPU, though torch's works there: it is told that the processes are on GPUs.
_FSDP_ON_CPU = """
from accelerate import state
from accelerate.utils import DistributedType
upstream = state.AcceleratorState.__init__
def as_if_on_gpus(self, *args, **kwargs):
    shared = state.PartialState()._shared_state
    if shared["distributed_type"] is DistributedType.MULTI_CPU:
        shared["distributed_type"] = DistributedType.MULTI_GPU
    upstream(self, *args, **kwargs)
state.AcceleratorState.__init__ = as_if_on_gpus
from alignkit.training import sharding
sharding.has_gpu = lambda train: True
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]) -> Job:
    """A job of four steps over `ROWS`, in a folder of its own; words override."""
    monkeypatch.chdir(tmp_path)
    write_rows(ROWS)

    def make(*words: str) -> SftJob:
        basis = ["model=tiny_gpt2", "data.path=rows.jsonl", "samples=0", "train.max_steps=4", "train.report_to=none"]
        return compose_job("sft", [*basis, "train.learning_rate=1e-3", "train.logging_steps=1", *words])

    return make


@pytest.fixture(scope="session")
def fsdp_on_cpu() -> str:
    """How a program begins whose gloo processes are to be sharded."""
    return _FSDP_ON_CPU


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves at the end of a PPO run: to draw them takes as long as all the rest of a tiny one."""
    monkeypatch.setattr("alignkit.ppo.record.plot_panels", lambda *_, **__: False)


@pytest.fixture
def pairs() -> list[dict[str, Any]]:
    """Preference pairs of a small world in which the longer answer is not always the better one."""
    return [
        {"prompt": f"Say {a} and {b}.", "chosen": f"{a}, {b}!", "rejected": f"{a}" + ", no" * (i % 3)}
        for i, (a, b) in enumerate((a, b) for a in NUMBERS[:8] for b in NUMBERS[:4])
    ]


@pytest.fixture
def pair_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path], pairs: list[dict[str, Any]]
) -> Callable[..., Any]:
    """A job of four steps over `pairs`, in a folder of its own: stage, then words that override."""
    monkeypatch.chdir(tmp_path)
    write_rows(pairs, "pairs.jsonl")
    basis = ["data.path=pairs.jsonl", "train.max_steps=4", "train.report_to=none", "train.learning_rate=1e-3"]
    basis += ["train.logging_steps=1", "train.per_device_train_batch_size=4"]
    return lambda stage, *words: compose_job(stage, [*basis, *words])


# Forks a process for each command line, so that the seconds of imports are paid once.
_FORKING = """
import json, os, sys
import alignkit.launch, matplotlib.figure, matplotlib.backends.backend_agg
import alignkit.stages.{stages}
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


class ForkServer:
    """Runs `alignkit …` in forked processes in `folder`, one at a time; their ids are there to send signals to."""

    def __init__(self, folder: Path, stages: tuple[str, ...]) -> None:
        self.folder = folder
        program = _FORKING.format(stages=".run, alignkit.stages.".join(stages) + ".run")
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder
        )

    def start(self, *words: str) -> int:
        """Start a process, and return its id; `wait` must follow."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> Ended:
        """Wait for the process that was started last."""
        return Ended(self._answer(), (self.folder / "said.txt").read_text())

    def run(self, *words: str, at: Path | None = None, number: int = 0) -> Ended:
        """Run a process to its end; a signal is sent as soon as there is a file `at`."""
        pid = self.start(*words)
        if at is not None:
            wait_for(at, lambda: Path(f"/proc/{pid}/stat").exists())
            os.kill(pid, number)
        return self.wait()

    def close(self) -> None:
        """Let the server end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


def wait_for(path: Path, is_alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert is_alive(), f"it ended before there was {path.name}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., ForkServer]]:
    """Start a server, in a folder of its own with these files, for command lines of these stages."""
    servers = []

    def start(files: dict[str, str], *stages: str) -> ForkServer:
        folder = tmp_path_factory.mktemp("-".join(stages))
        for name, text in files.items():
            (folder / name).write_text(text)
        servers.append(ForkServer(folder, stages))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
