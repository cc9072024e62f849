"""Small jobs on a tiny random model, rows for them, and processes that a test may kill."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it

from alignkit.jobs import SftJob
from alignkit.launch import compose_job

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ROWS: list[dict[str, Any]] = [
    {"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}" + ", and so on" * (i % 4)}
    for i, (a, b) in enumerate((a, b) for a in NUMBERS for b in NUMBERS[:3])
]

SMALL = ["model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]

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
        basis = ["model=tiny_gpt2", *SMALL, "data.path=rows.jsonl", "samples=0", "train.max_steps=4"]
        return compose_job(
            "sft", [*basis, "train.report_to=none", "train.learning_rate=1e-3", "train.logging_steps=1", *words]
        )

    return make


@pytest.fixture(scope="session")
def fsdp_on_cpu() -> str:
    """How a program begins whose gloo processes are to be sharded."""
    return _FSDP_ON_CPU


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves at the end of a run: to draw them takes as long as all the rest of a tiny one."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("alignkit.ppo.record.plot_panels", lambda *_, **__: False)
        monkeypatch.setattr("alignkit.runs.report.plot_losses", lambda *_, **__: False)


@pytest.fixture
def drawn() -> None:
    """Curves, for a test that looks at them."""


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


# Forks a process for each environment of a line, so that the seconds of imports are paid once; like torchrun, it ends
# the others when one of them fails.
_FORKING = """
import gc, json, os, runpy, signal, sys
import alignkit.launch, matplotlib.figure, matplotlib.backends.backend_agg
import {modules}
gc.freeze()
children = []
for line in sys.stdin:
    asked = json.loads(line)
    for env in asked["envs"]:
        children.append(os.fork())
        if not children[-1]:
            break
    else:
        print(json.dumps(children), flush=True)
        statuses = []
        while children:
            pid, ended = os.wait()
            statuses.append(os.waitstatus_to_exitcode(ended))
            children.remove(pid)
            for other in children if statuses[-1] else ():
                os.kill(other, signal.SIGTERM)
        print(next(filter(None, statuses), 0), flush=True)
        continue
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), 1)
    os.dup2(1, 2)
    os.chdir(asked["folder"])
    os.environ.update(env)
    program, *_ = sys.argv = asked["words"]
    if program == "alignkit":
        runpy.run_module(program, run_name="__main__")
    else:
        runpy.run_path(program, run_name="__main__")
    break
"""


@dataclass
class Ended:
    """How a process ended: its exit status (−9 for SIGKILL), and all that it said."""

    status: int
    said: str


@dataclass
class ForkServer:
    """Runs `alignkit …` or a program in forked processes in `folder`; their ids are there to send signals to."""

    process: "subprocess.Popen[str]"
    folder: Path

    def start(self, *words: str) -> int:
        """Start `alignkit` with these words, and return its process id; `wait` must follow."""
        (pid,) = self._start(["alignkit", *words], [{}])
        return pid

    def wait(self) -> Ended:
        """Wait for what was started last."""
        return Ended(self._answer(), (self.folder / "said.txt").read_text())

    def run(self, *words: str, at: Path | None = None, number: int = 0) -> Ended:
        """Run a process to its end; a signal is sent as soon as there is a file `at`."""
        pid = self.start(*words)
        if at is not None:
            wait_for(at, lambda: Path(f"/proc/{pid}/stat").exists())
            os.kill(pid, number)
        return self.wait()

    def run_two(self, *words: str, **env: str) -> Ended:
        """Run a program, or `alignkit`, in two processes that find each other as those of torchrun do."""
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
        self._start(words, [env | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"])
        return self.wait()

    def _start(self, words: Sequence[str], envs: Sequence[dict[str, str]]) -> list[int]:
        assert self.process.stdin
        asked = {"words": words, "envs": envs, "folder": str(self.folder), "said": str(self.folder / "said.txt")}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())


def wait_for(path: Path, is_alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert is_alive(), f"it ended before there was {path.name}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="session")
def _forking() -> Iterator["subprocess.Popen[str]"]:
    modules = ", ".join(f"alignkit.stages.{stage}.run" for stage in ("sft", "reward", "dpo", "ppo"))
    program = [sys.executable, "-c", _FORKING.format(modules=modules)]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def fork_server(_forking: "subprocess.Popen[str]", tmp_path_factory: pytest.TempPathFactory) -> ForkServer:
    """What runs forked processes, in a folder of the module's own."""
    return ForkServer(_forking, tmp_path_factory.mktemp("forked"))
