"""Shared by every test: the command line in a fresh process, and small files."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from serving import Serve, start

ROOT = Path(__file__).parents[1]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(ROOT / ".pytest_cache" / "huggingface")  # not what someone once downloaded
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / "cache")  # nothing is kept in the user's own
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other on a busy machine cost eightfold

# The same examples in every run, so that no first run fails by chance; `--hypothesis-profile=random` draws new ones.
settings.register_profile("seeded", derandomize=True, database=None, deadline=None)
settings.register_profile("random", database=None, deadline=None, print_blob=True)
settings.load_profile("seeded")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def alignkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `alignkit …` as a user would, in a folder of its own; returns the finished process."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, timeout: int = 300, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alignkit", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )

    return run


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines and return the path."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def byte() -> Any:
    """The byte tokenizer: ids 0 to 255 are bytes; 256 pad, 257 bos, 258 eos, 259 <|im_start|>, 260 <|im_end|>."""
    from alignkit.models.tiny import byte_tokenizer

    return byte_tokenizer()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve something until the test ends; its address."""
    running: list[ThreadingHTTPServer] = []

    def serve(serving: Any) -> str:
        running.append(start(serving))
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield serve
    for server in running:
        server.shutdown()
        server.server_close()


def pytest_collection_finish() -> None:
    """Spare every later collection of garbage the modules that collecting the tests imported: half a second each."""
    gc.collect()
    gc.freeze()
