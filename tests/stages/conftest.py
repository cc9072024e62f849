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
