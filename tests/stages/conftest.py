"""A small job on a tiny random model, and rows for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import SftJob
from alignkit.launch import compose_job

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ROWS: list[dict[str, Any]] = [
    {"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}" + ", and so on" * (i % 4)}
    for i, (a, b) in enumerate((a, b) for a in NUMBERS for b in NUMBERS[:3])
]

Job = Callable[..., SftJob]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]) -> Job:
    """A job of four steps over `ROWS`, in a folder of its own; words override."""
    monkeypatch.chdir(tmp_path)
    write_rows(ROWS)

    def make(*words: str) -> SftJob:
        basis = ["model=tiny_gpt2", "data.path=rows.jsonl", "samples=0", "train.max_steps=4", "train.report_to=none"]
        return compose_job("sft", [*basis, "train.learning_rate=1e-3", "train.logging_steps=1", *words])

    return make
