"""Killed, interrupted, spoilt, out of space: what is left, and what a resume makes of it."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from alignkit.errors import TrainingError
from alignkit.training.checkpoints import checkpoints, damage, step_of

CLOCKS = (
    "tokens_per_second",
    "supervised_tokens_per_second",
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def weights(run_dir: Path) -> str:
    return (run_dir / "weights").read_text()


def test_killed_between_checkpoints_and_resumed_is_never_killed(
    train: Callable[..., Any], unbroken: Path, tmp_path: Path
) -> None:
    assert train(tmp_path, kill_at=8).codes == [-9]
    assert names(tmp_path) == ["checkpoint-5"]
    resumed = train(tmp_path, resume=True)
    assert resumed.codes == [0], resumed.said
    assert resumed.weights == weights(unbroken)
    assert metrics(tmp_path) == metrics(unbroken)
    assert [line["step"] for line in metrics(tmp_path)] == [3, 6, 9, 12, 15, 18]


def test_killed_while_saving_and_resumed_is_never_killed(
    train: Callable[..., Any], unbroken: Path, tmp_path: Path
) -> None:
    assert train(tmp_path, kill_in_save=10).codes == [-9]
    assert names(tmp_path) == ["checkpoint-10.partial", "checkpoint-5"]
    assert (tmp_path / "checkpoints/checkpoint-10.partial/optimizer.pt").exists()
    resumed = train(tmp_path, resume=True)
    assert "going on from" in resumed.said
    assert "checkpoint-5" in resumed.said
    assert resumed.weights == weights(unbroken)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15", "checkpoint-20", "checkpoint-5"]


@pytest.mark.parametrize("kill", [{"kill_in_save": 20}, {"kill_after_save": 20}, {"kill_after_save": 10}, {}], ids=str)
@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_killed_around_a_save_at_an_epochs_end_and_resumed_evaluates_once(
    train: Callable[..., Any], tmp_path: Path, kill: dict[str, int], strategy: str
) -> None:
    words = {"eval_strategy": strategy, "eval_steps": 10, "logging_strategy": strategy}
    whole = train(tmp_path / "whole", **words)
    assert train(tmp_path / "killed", **kill, **words).codes == ([-9] if kill else [0])
    resumed = train(tmp_path / "killed", resume=True, **words)
    assert resumed.codes == [0], resumed.said
    assert resumed.weights == whole.weights
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "killed") if "eval_loss" in line] == [10, 20]


@pytest.mark.parametrize("step", [10, 20])
def test_a_checkpoint_from_before_its_epochs_evaluation_is_evaluated(
    tiny: ModuleType, tmp_path: Path, step: int
) -> None:
    whole = tiny.tiny_trainer(tmp_path, eval_strategy="epoch", dropout=0.0)
    whole.train()
    path = whole.output_dir / f"checkpoint-{step}" / "trainer_state.json"
    state = json.loads(path.read_text())
    assert "eval_loss" in state["log_history"].pop()
    path.write_text(json.dumps(state))
    resumed = tiny.tiny_trainer(tmp_path, eval_strategy="epoch", dropout=0.0)
    resumed.train(str(path.parent))
    losses = [
        [(entry["step"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    assert [line["step"] for line in metrics(tmp_path) if "eval_loss" in line] == [10, 20]


def test_flipped_bits_are_passed_over(train: Callable[..., Any], unbroken: Path, tmp_path: Path) -> None:
    train(tmp_path, kill_at=13)
    spoilt = tmp_path / "checkpoints/checkpoint-10/model.safetensors"
    content = bytearray(spoilt.read_bytes())
    content[-5] ^= 1
    spoilt.write_bytes(content)
    resumed = train(tmp_path, resume=True)
    assert "passed over checkpoint-10: model.safetensors is not what was written (its checksum differs)" in resumed.said
    assert resumed.weights == weights(unbroken)
    assert damage(spoilt.parent) == ""  # written anew on the way


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_saves_and_stops_and_can_be_resumed(
    train: Callable[..., Any], unbroken: Path, tmp_path: Path, number: signal.Signals
) -> None:
    stopped = train(tmp_path, signal_at=8, signal_number=number)
    assert f"Interrupted {128 + number}: stopped at step 8" in stopped.said
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-8"]
    resumed = train(tmp_path, resume=True)
    assert resumed.weights == weights(unbroken)
    assert metrics(tmp_path) == metrics(unbroken)


@pytest.mark.parametrize("step", [8, 10])
def test_a_signal_neither_adds_nor_loses_an_evaluation(train: Callable[..., Any], tmp_path: Path, step: int) -> None:
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    train(tmp_path / "unbroken", **epochs)
    train(tmp_path / "stopped", signal_at=step, **epochs)
    assert names(tmp_path / "stopped") == [f"checkpoint-{step}"]
    resumed = train(tmp_path / "stopped", resume=True, **epochs)
    assert resumed.codes == [0], resumed.said
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "unbroken")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "unbroken")


def test_weights_alone_are_saved_on_request_but_a_signal_saves_it_all(
    train: Callable[..., Any], unbroken: Path, tmp_path: Path
) -> None:
    train(tmp_path, signal_at=8, save_only_model=True)
    resumed = train(tmp_path, resume=True, save_only_model=True)
    assert resumed.weights == weights(unbroken)
    assert damage(tmp_path / "checkpoints/checkpoint-20", to_resume=True).startswith("it holds weights only")
    assert damage(tmp_path / "checkpoints/checkpoint-20") == ""


def test_resuming_a_training_that_had_ended_takes_no_step(train: Callable[..., Any], tmp_path: Path) -> None:
    ended = train(tmp_path, max_steps=7)
    before = metrics(tmp_path)
    resumed = train(tmp_path, resume=True, max_steps=7)
    assert resumed.weights == ended.weights
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-7"]
    assert metrics(tmp_path) == before


def test_a_mixture_of_experts_goes_on_with_its_experts(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights have other names in a published folder than in memory."""

    def mixture(dropout: float) -> MixtralForCausalLM:
        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        experts = {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
        return MixtralForCausalLM(MixtralConfig(vocab_size=tiny.VOCABULARY, **sizes, **experts))

    monkeypatch.setattr(tiny, "tiny_model", mixture)
    whole, resumed = (tiny.tiny_trainer(tmp_path / name, max_steps=10) for name in ("whole", "resumed"))
    start = tiny.weights_hash(whole.model)
    whole.train()
    resumed.train(str(whole.output_dir / "checkpoint-5"))
    assert tiny.weights_hash(resumed.model) == tiny.weights_hash(whole.model) != start


def test_a_checkpoint_of_other_weights_is_not_gone_on_with(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=5)
    trainer.train()
    path = trainer.output_dir / "checkpoint-5" / "model.safetensors"
    weights = load_file(path)
    weights["transformer.h.9.ln_1.bias"] = weights.pop("transformer.h.0.ln_1.bias")
    save_file(weights, path)
    with pytest.raises(TrainingError) as caught:
        tiny.tiny_trainer(tmp_path / "again").train(str(path.parent))
    lost = "transformer.h.0.ln_1.bias, transformer.h.9.ln_1.bias"
    assert str(caught.value) == f"the checkpoint's weights are not those of this model: {lost}"


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_rows(tiny: ModuleType, tmp_path: Path) -> None:
    data = tiny.rows()
    ids = data["input_ids"][:]
    ids[17] = [*ids[17][:3], 63, *ids[17][4:]]  # token 63 is in this row only
    trainer = tiny.tiny_trainer(
        tmp_path,
        train_rows=data.remove_columns("input_ids").add_column("input_ids", ids),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=1,
    )
    trainer.model.transformer.wte.weight.data[63] = float("inf")
    with pytest.raises(TrainingError, match=r"the loss is not finite, at a learning rate of 0\.0") as caught:
        trainer.train()
    num_steps = trainer.state.global_step
    text = str(caught.value)
    assert text.startswith(f"step {num_steps + 1}: ")
    assert "train.jsonl:18" in text
    assert text.count("train.jsonl:") == 2  # the rows of the spoilt batch, not of the other one in the same step
    layer = trainer.model.transformer.h[0].ln_1.weight
    assert layer.isfinite().all()
    assert trainer.optimizer.state[layer]["step"] == num_steps
    assert [step_of(path) for path in checkpoints(trainer.output_dir)] == list(range(1, num_steps + 1))


def test_a_gradient_that_is_not_finite_stops_too(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path)
    trainer.model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite") as caught:
        trainer.train()
    assert str(caught.value).count("train.jsonl:") == 4


def test_a_damaged_best_checkpoint_is_not_taken_for_the_result(tiny: ModuleType, tmp_path: Path) -> None:
    trainer = tiny.tiny_trainer(tmp_path, max_steps=5)
    trainer.train()
    best = trainer.output_dir / "checkpoint-5"
    trainer.state.best_model_checkpoint = str(best)
    trainer._load_best_model()
    (best / "config.json").unlink()
    with pytest.raises(TrainingError) as caught:
        trainer._load_best_model()
    assert str(caught.value) == f"the best checkpoint, {best}, cannot be trusted: config.json is missing"


def test_a_file_size_limit_is_told_in_words_and_the_last_checkpoint_serves(
    train: Callable[..., Any], unbroken: Path, tmp_path: Path
) -> None:
    stopped = train(tmp_path, limit_at=8)
    assert "TrainingError 1: the disk that holds" in stopped.said
    assert "is full: a checkpoint needs about 0.4 MB" in stopped.said
    assert "quota or a file size limit is in force); checkpoint-5 is intact: free space and go on" in stopped.said
    assert names(tmp_path) == ["checkpoint-5"]
    assert train(tmp_path, resume=True).weights == weights(unbroken)


def can_mount(folder: Path) -> bool:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "none", folder], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_full_disk_is_told_in_words_and_the_last_checkpoint_serves(
    train: Callable[..., Any], unbroken: Path, tmp_path: Path
) -> None:
    if not can_mount(tmp_path):
        pytest.skip("may not mount")
    try:
        stopped = train(tmp_path)
        assert "TrainingError 1: the disk that holds" in stopped.said
        assert "MB are free; checkpoint-5 is intact: free space and go on with resume=true" in stopped.said
        assert names(tmp_path) == ["checkpoint-5"]
        subprocess.run(["mount", "-o", "remount,size=8m", tmp_path], check=True)
        assert train(tmp_path, resume=True).weights == weights(unbroken)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_two_processes_stop_together(train: Callable[..., Any], tmp_path: Path) -> None:
    two = {"num_processes": 2, "per_device_train_batch_size": 2}
    unbroken = train(tmp_path / "unbroken", **two)
    assert unbroken.codes == [0, 0], unbroken.said
    stopped = train(tmp_path / "stopped", signal_at=8, **two)
    assert stopped.codes == [1, 1], stopped.said
    assert "Interrupted 143: stopped at step 8" in stopped.said
    assert names(tmp_path / "stopped") == ["checkpoint-5", "checkpoint-8"]
    resumed = train(tmp_path / "stopped", resume=True, **two)
    assert resumed.weights == unbroken.weights
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "unbroken")


def test_two_processes_refuse_a_spoilt_step_together(train: Callable[..., Any], tmp_path: Path) -> None:
    spoilt = train(tmp_path, num_processes=2, per_device_train_batch_size=2, poison_at=8)
    assert spoilt.codes == [1, 1], spoilt.said
    assert "step 8: the loss is not finite" in spoilt.said
    assert spoilt.said.count("train.jsonl:") == 2  # the last rank's batch; the first's was sound
    assert names(tmp_path) == ["checkpoint-5"]


def test_two_processes_measure_what_one_does(train: Callable[..., Any], tmp_path: Path) -> None:
    train(tmp_path / "one", dropout=0.0)
    train(tmp_path / "two", dropout=0.0, num_processes=2, per_device_train_batch_size=2)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in two] == pytest.approx([line[key] for line in one], rel=1e-4)
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one] == [144, 288, 432, 576, 720, 864]


def test_another_number_of_processes_is_warned_of(train: Callable[..., Any], tmp_path: Path) -> None:
    train(tmp_path, kill_at=8)
    resumed = train(tmp_path, resume=True, num_processes=2, per_device_train_batch_size=2)
    assert resumed.codes == [0, 0], resumed.said
    assert "saved by 1 processes and resumed by 2: right, but no longer bit for bit an unbroken run" in resumed.said
