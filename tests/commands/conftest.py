"""Runs to look at, trained once: full weights that know four answers by heart, and an adapter."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from alignkit.launch import compose_job
from alignkit.models.tiny import byte_tokenizer
from alignkit.stages.sft import run as sft

KNOWN = {
    "Say hello.": "hello there",
    "Count to five, please, and take your time.": "1 2 3 4 5",
    "Up?": "down",
    "A Greek word": "λόγος",
}


@pytest.fixture(scope="session")
def byte() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("known") / "rows.jsonl"
    lines = (json.dumps({"instruction": question, "output": answer}) for question, answer in KNOWN.items())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a tiny model on `KNOWN`; the run directory."""

    def train(name: str, *words: str, steps: int = 40) -> Path:
        quiet = ["train.report_to=none", "train.save_strategy='no'", "samples=0", f"train.max_steps={steps}"]
        by_heart = ["train.per_device_train_batch_size=4", "train.learning_rate=3e-3"]
        job = compose_job("sft", ["model=tiny_gpt2", f"data.path={rows}", *quiet, *by_heart, *words])
        folder = tmp_path_factory.mktemp("runs") / name
        sft.run(job, folder)
        return folder

    return train


@pytest.fixture(scope="session")
def run_dir(train: Callable[..., Path]) -> Path:
    return train("known")


@pytest.fixture(scope="session")
def adapter_dir(train: Callable[..., Path]) -> Path:
    return train("lora", "lora=all_linear", "train.learning_rate=1e-2")


@pytest.fixture(scope="session")
def other_dir(train: Callable[..., Path]) -> Path:
    """As `run_dir`, but hardly trained."""
    return train("other", steps=1)
