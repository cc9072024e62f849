"""What is counted, and what `metrics.jsonl` keeps."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import TrainerControl, TrainerState

from alignkit.training.metrics import MetricsFile, TokenMeter, read_metrics

ALONE: Any = SimpleNamespace(device=torch.device("cpu"), gather=lambda tensor: tensor)


def test_padded_rows_are_counted_without_padding() -> None:
    meter = TokenMeter()
    meter.add(
        {
            "input_ids": torch.zeros(2, 4, dtype=torch.long),
            "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
            "labels": torch.tensor([[-100, 5, 6, -100], [7, -100, -100, 8]]),  # nothing predicts a first token
        },
        num_rows=2,
    )
    assert meter.counts.tolist() == [7, 3]


def test_rows_laid_end_to_end_are_counted_without_padding() -> None:
    meter = TokenMeter()
    position_ids = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]])  # rows of 3, 2 and 3, then padding
    meter.add({"position_ids": position_ids}, num_rows=3)
    assert meter.counts.tolist() == [8, 0]


def test_pairs_are_counted_without_padding() -> None:
    meter = TokenMeter()
    parts = torch.tensor([[1, 2, 2, 0], [1, 3, 0, 0]])  # the two sides of one pair
    meter.add({"position_ids": torch.tensor([[0, 1, 2, 0], [0, 1, 0, 0]]), "parts": parts}, num_rows=1)
    assert meter.counts.tolist() == [5, 0]


def test_rates_are_of_the_time_in_steps_since_the_last_report() -> None:
    meter = TokenMeter()
    meter.restore(torch.tensor([100, 40]))
    meter.start()
    meter.add({"attention_mask": torch.ones(2, 5), "labels": torch.ones(2, 5)}, num_rows=2)
    meter.stop()
    meter._seconds = 2.0
    assert meter.report(ALONE) == {
        "tokens": 110,
        "tokens_per_second": 5.0,
        "supervised_tokens": 48,
        "supervised_tokens_per_second": 4.0,
    }
    assert meter.report(ALONE)["tokens_per_second"] == 0


def log(file: MetricsFile, step: int, *, main: bool = True, **logs: float) -> None:
    file.on_log(None, TrainerState(global_step=step, is_world_process_zero=main), TrainerControl(), logs=logs)  # type: ignore[arg-type]


def test_one_object_a_line_with_its_step_from_the_first_process_only(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    log(file, 3, loss=2.5)
    log(file, 3, main=False, loss=9.0)
    log(file, 6, loss=float("nan"))
    log(file, 6, train_runtime=3.0, train_loss=2.0)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 2.5}\n{"step": 6, "loss": null}\n'


def test_a_resumed_run_cuts_off_what_it_will_write_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "loss": 1.0} for step in (3, 5, 5, 6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo')
    file = MetricsFile(path)
    state = TrainerState(global_step=5, log_history=lines[:2])  # saved before the second log at its step
    file.on_train_begin(None, state, TrainerControl())  # type: ignore[arg-type]
    log(file, 6, loss=0.5)
    assert read_metrics(path) == [*lines[:2], {"step": 6, "loss": 0.5}]
