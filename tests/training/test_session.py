"""From the start or a checkpoint to the end: what is said, what is evaluated, and how an end that is none is told.

Kills and signals in processes of their own are in `test_durable.py`.
"""

import errno
import logging
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from alignkit.errors import Interrupted, MemoryShortage, TrainingError
from alignkit.training.session import explain_full_disk, train


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="alignkit")


def evaluations(trainer: Any) -> list[int]:
    return [line["step"] for line in trainer.state.log_history if "eval_loss" in line]


def test_the_end_is_evaluated_if_training_has_not_done_so(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=4)
    train(trainer, resume=False)
    assert evaluations(trainer) == [4, 6]


def test_nothing_is_evaluated_where_that_was_asked_for(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6, eval_strategy="no")
    train(trainer, resume=False)
    assert evaluations(trainer) == []


def test_an_evaluation_of_the_last_step_is_not_repeated(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=3)
    train(trainer, resume=False)
    assert evaluations(trainer) == [3, 6]


def test_where_the_best_is_kept_the_trainer_ends_with_it_not_with_the_last(tiny: ModuleType, tmp_path: Path) -> None:
    best = {"eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True}
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6, **best)
    train(trainer, resume=False)
    assert evaluations(trainer) == [4, 6]
    assert trainer.state.best_global_step == 4
    best_weights = load_file(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert {name: weight.tolist() for name, weight in trainer.model.state_dict().items()} == {
        name: weight.tolist() for name, weight in best_weights.items()
    }


def test_resuming_without_a_checkpoint_begins_at_the_start_and_says_so(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=2)
    train(trainer, resume=True)
    assert "going on from the start: no checkpoint was saved yet" in caplog.messages
    assert trainer.state.global_step == 2


def test_a_start_says_nothing_of_checkpoints_and_takes_none(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        trainer = tiny.tiny_trainer(tmp_path, max_steps=5, eval_strategy="no")
        train(trainer, resume=False)
        assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [3]
    assert not [line for line in caplog.messages if "going on" in line]


def test_resuming_takes_the_newest_sound_checkpoint_and_names_what_it_passed_over(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny.tiny_trainer(tmp_path, max_steps=15), resume=False)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "checkpoint-15" / "checksums.json").unlink()
    (checkpoints / "checkpoint-10" / "optimizer.pt").write_bytes(b"")
    caplog.clear()
    trainer = tiny.tiny_trainer(tmp_path, max_steps=15)
    train(trainer, resume=True)
    said = [record for record in caplog.records if record.name == "alignkit.training.session"]
    assert [record.levelname for record in said] == ["WARNING", "WARNING", "INFO"]
    assert said[0].message == "passed over checkpoint-15: it was never sealed (checksums.json is missing)"
    assert said[1].message.startswith("passed over checkpoint-10: optimizer.pt has 0 bytes instead of ")
    assert said[2].message == f"going on from {checkpoints / 'checkpoint-5'}"
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [3, 6, 9, 12, 15]


def test_a_signal_becomes_an_error_that_names_the_step_and_nothing_is_evaluated(
    tiny: ModuleType, tmp_path: Path
) -> None:
    trainer = tiny.tiny_trainer(tmp_path)
    trainer.add_callback(tiny.At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Interrupted) as caught:
        train(trainer, resume=False)
    assert str(caught.value) == "stopped at step 3, which is saved: go on with resume=true"
    assert caught.value.exit_status == 143
    assert evaluations(trainer) == []
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-3"]


def test_a_full_disk_while_the_result_is_written_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught, explain_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
    line = str(caught.value)
    assert line.startswith(f"the disk that holds {tmp_path} is full: ")
    assert line.endswith(
        " MB are free, too few for the trained model; its checkpoints are intact: free space and go on with resume=true"
    )
    assert caught.value.exit_status == 1


def test_another_error_while_the_result_is_written_stays_what_it_is(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(PermissionError) as caught, explain_full_disk(tmp_path):
        raise error
    assert caught.value is error


class SignalAt(TrainerCallback):
    """Sends SIGTERM when training has taken its last step."""

    def __init__(self, event: str) -> None:
        setattr(self, event, self.send)

    def send(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_step_ends_where_a_resume_writes_the_result(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6)
    trainer.add_callback(SignalAt("on_save"))
    with pytest.raises(
        Interrupted, match="stopped after the last step, 6, which is saved: resume=true goes on"
    ) as caught:
        train(trainer, resume=False)
    assert caught.value.exit_status == 143


def test_a_signal_after_a_last_step_that_is_saved_nowhere_does_not_lose_it(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6, save_strategy="no")
    trainer.add_callback(SignalAt("on_train_end"))
    train(trainer, resume=False)
    assert "SIGTERM came after the last step, which no checkpoint has: the result is saved" in caplog.text


def test_a_tracker_that_is_not_set_up_is_told_in_a_line(tiny: ModuleType, tmp_path: Path) -> None:
    class NoKey(Exception):
        __module__ = "wandb.errors"

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise NoKey("No API key configured.\nMore words.")

    trainer = tiny.tiny_trainer(tmp_path, max_steps=1)
    trainer.add_callback(Tracker())
    with pytest.raises(NoKey):  # nobody asked for it: a bug of ours
        train(trainer, resume=False)
    trainer.args.report_to = ["wandb"]
    with pytest.raises(
        TrainingError, match=r"^train.report_to=wandb: No API key configured.; set it up, or leave it out$"
    ):
        train(trainer, resume=False)


def test_out_of_memory_names_its_step_and_what_to_lower(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=6)
    step = trainer.training_step

    def grown(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", grown)
    with pytest.raises(MemoryShortage, match=r"step 3: out of memory: lower train\.per_device_train_batch_size"):
        train(trainer, resume=False)
