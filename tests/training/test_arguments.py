"""What the trainer is told when the user has not said it, and what the user cannot ask for without held-out rows."""

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.training.arguments import TRACKERS, check_evaluation, check_report_to, chosen_arguments
from alignkit.upstream import SFT_CONFIG, argument_types, build


def chosen(train: dict[str, Any] | None = None, **facts: bool) -> dict[str, Any]:
    known = {"bf16": False, "held_out": False, "keep_best": False} | facts
    return chosen_arguments(train or {}, run_dir=Path("runs/x"), seed=7, **known)


def test_the_defaults_by_value() -> None:
    assert chosen() == {
        "bf16": False,
        "eval_strategy": "no",
        "eval_on_start": False,
        "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
        "use_cpu": not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,
        "per_device_eval_batch_size": 8,
        "output_dir": "runs/x/checkpoints",
        "seed": 7,
        "disable_tqdm": False,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
    }
    assert chosen().keys() <= argument_types(SFT_CONFIG).keys()


@pytest.mark.parametrize(
    ("train", "facts", "expected"),
    [
        ({}, {"bf16": True}, {"bf16": True}),
        ({"fp16": True}, {"bf16": True}, {"bf16": False, "fp16": True}),
        ({"bf16": False}, {"bf16": True}, {"bf16": False}),
        ({}, {"held_out": True}, {"eval_strategy": "epoch", "eval_on_start": True}),
        ({"eval_strategy": "no"}, {"held_out": True}, {"eval_strategy": "no", "eval_on_start": True}),
        ({"eval_steps": 5}, {"held_out": True}, {"eval_strategy": "steps", "eval_steps": 5}),
        ({"eval_on_start": False}, {"held_out": True}, {"eval_strategy": "epoch", "eval_on_start": False}),
        ({"report_to": "none"}, {}, {"report_to": "none"}),
        ({"per_device_train_batch_size": 3}, {}, {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3}),
        ({"per_device_train_batch_size": 3, "per_device_eval_batch_size": 2}, {}, {"per_device_eval_batch_size": 2}),
        ({"seed": 1, "output_dir": "elsewhere"}, {}, {"seed": 7, "output_dir": "runs/x/checkpoints"}),
        ({"remove_unused_columns": True}, {}, {"remove_unused_columns": False}),
    ],
)
def test_the_users_word_wins_over_a_default_and_ours_over_both(
    train: dict[str, Any], facts: dict[str, bool], expected: dict[str, Any]
) -> None:
    found = chosen(train, **facts)
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("train", "strategy", "steps"),
    [
        ({}, "epoch", None),
        ({"eval_strategy": "steps", "eval_steps": 5}, "steps", 5),
        ({"eval_strategy": "steps", "eval_steps": 5, "save_steps": 10}, "steps", 10),
        ({"eval_steps": 5}, "steps", 5),
        ({"save_steps": 10}, "steps", 10),
    ],
)
def test_the_best_checkpoint_can_only_be_kept_if_one_is_saved_at_each_evaluation(
    tmp_path: Path, train: dict[str, Any], strategy: str, steps: int | None
) -> None:
    found = chosen(train, held_out=True, keep_best=True)
    assert found["load_best_model_at_end"] is True
    assert found["save_strategy"] == strategy
    assert found.get("save_steps") == steps
    by_user = chosen({**train, "load_best_model_at_end": True}, held_out=True)
    assert by_user == found
    args = build(SFT_CONFIG, {**found, "output_dir": str(tmp_path), "report_to": "none"}, "train")
    assert args.load_best_model_at_end
    assert args.metric_for_best_model == "loss"
    assert args.greater_is_better is False


def test_what_needs_held_out_rows_is_refused_without_them() -> None:
    train = {"load_best_model_at_end": True, "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 3}
    assert check_evaluation(train, held_out=True, early_stopping=2) == []
    assert check_evaluation(train, held_out=False, early_stopping=2) == [
        "train.load_best_model_at_end needs held-out rows: data.eval_path or data.eval_fraction",
        "train.eval_on_start needs held-out rows: data.eval_path or data.eval_fraction",
        "train.eval_strategy needs held-out rows: data.eval_path or data.eval_fraction",
        "train.eval_steps needs held-out rows: data.eval_path or data.eval_fraction",
        "early_stopping needs held-out rows: data.eval_path or data.eval_fraction",
    ]


@pytest.mark.parametrize("train", [{}, {"eval_strategy": "no"}, {"load_best_model_at_end": False}])
def test_what_asks_for_nothing_is_let_through(train: dict[str, Any]) -> None:
    assert check_evaluation(train, held_out=False, early_stopping=None) == []


def test_trackers_are_looked_for_before_anything_is_written() -> None:
    assert [check_report_to({"report_to": name}) for name in ("none", "all", [], ["none"], "tensorboard")] == [[]] * 5
    assert check_report_to({"report_to": ["trackio", "clearml", "wnb", "elsewhere"]}) == [
        "train.report_to=trackio: its package is not installed: pip install 'alignkit[trackio]'",
        "train.report_to=clearml: its package is not installed: install it, or leave it out",
        "train.report_to: there is no tracker 'wnb'; did you mean 'wandb'?",
        "train.report_to: there is no tracker 'elsewhere'; it can be azure_ml, comet_ml, mlflow, neptune, tensorboard, "
        "trackio, wandb, codecarbon, clearml, dagshub, flyte, dvclive, swanlab, kubeflow",
    ]


def test_every_tracker_that_a_refusal_names_is_an_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*TRACKERS} <= project["optional-dependencies"].keys()
