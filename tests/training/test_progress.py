"""What a person sees while training."""

import io
import logging
import re

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from alignkit.training import progress
from alignkit.training.progress import ProgressBar

ARGS = TrainingArguments("unused", use_cpu=True, disable_tqdm=False)
CONTROL = TrainerControl()


def test_plain_lines_where_nobody_watches(caplog: pytest.LogCaptureFixture) -> None:
    bar = ProgressBar()
    with caplog.at_level(logging.INFO, "alignkit"):
        bar.on_train_begin(ARGS, TrainerState(max_steps=40), CONTROL)
        bar.on_log(
            ARGS, TrainerState(global_step=10, max_steps=40), CONTROL, {"loss": 2.5, "tokens_per_second": 1234.5}
        )
        bar.on_log(ARGS, TrainerState(global_step=40, max_steps=40), CONTROL, {"eval_loss": 1.25})
        bar.on_log(ARGS, TrainerState(global_step=40, max_steps=40), CONTROL, {"train_loss": 1.0, "train_runtime": 3.0})
    assert [re.sub(r"\d:\d\d:\d\d", "T", record.getMessage()) for record in caplog.records] == [
        "step 10/40  loss 2.5  1,234 tokens/s  T left",
        "step 40/40  eval loss 1.25",
    ]


def test_other_processes_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    bar, state = ProgressBar(), TrainerState(global_step=10, max_steps=40, is_world_process_zero=False)
    with caplog.at_level(logging.INFO, "alignkit"):
        bar.on_train_begin(ARGS, state, CONTROL)
        bar.on_log(ARGS, state, CONTROL, {"loss": 2.5})
    assert caplog.records == []


def test_one_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **rest: Console(file=screen, force_terminal=True, width=100))
    bar, state = ProgressBar(), TrainerState(global_step=10, max_steps=40)
    bar.on_train_begin(ARGS, state, CONTROL)
    bar.on_log(ARGS, state, CONTROL, {"loss": 2.5, "tokens_per_second": 1234.5})
    bar.on_step_end(ARGS, state, CONTROL)
    bar.on_prediction_step(ARGS, state, CONTROL)
    bar.on_log(ARGS, state, CONTROL, {"eval_loss": 1.25})
    bar.stop()
    bar.stop()
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "step 10: eval loss 1.25\n" in said
    assert re.search(r"training ━.* 10/40 loss 2\.5  1,234 tokens/s .* left", said)
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is given back
