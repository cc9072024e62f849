"""The tiny trainer of `tiny.py`, in this process and in processes of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TINY = Path(__file__).with_name("tiny.py")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny", TINY)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Outcome:
    """How the processes of one training ended.

    Attributes:
        codes: exit codes by rank, −9 for SIGKILL.
        said: what rank 0 wrote to the terminal.
        weights: hash of the trained weights; empty where training did not end.
    """

    codes: list[int]
    said: str
    weights: str


@pytest.fixture(scope="session")
def train() -> Iterator[Callable[..., Outcome]]:
    """Train in processes of their own: `train(run_dir, kill_at=8)`."""
    server = subprocess.Popen(
        [sys.executable, TINY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert server.stdin
    assert server.stdout
    stdin, stdout = server.stdin, server.stdout

    def ask(run_dir: Path, **words: Any) -> Outcome:
        weights = run_dir / "weights"
        weights.unlink(missing_ok=True)
        stdin.write(json.dumps({"run_dir": str(run_dir), **words}) + "\n")
        stdin.flush()
        codes = json.loads(stdout.readline())
        said = (run_dir / "said-0.txt").read_text()
        return Outcome(codes, said, weights.read_text() if weights.exists() else "")

    yield ask
    stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def unbroken(train: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a training that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("unbroken")
    outcome = train(run_dir)
    assert outcome.codes == [0], outcome.said
    return run_dir
