"""Arguments of the trainer that upstream takes and never looks at beside others."""

from typing import Any

import pytest

from alignkit.training.arguments import interval_strategies
from alignkit.training.unused_arguments import unused_arguments


def unused(train: dict[str, Any], *, held_out: bool = True, keep_best: bool = False) -> list[str]:
    strategies = interval_strategies(train, held_out=held_out, keep_best=keep_best)
    return unused_arguments(train, strategies, keep_best=keep_best)


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (
            {"save_strategy": "epoch", "save_steps": 5},
            "train.save_steps=5 has no effect with train.save_strategy=epoch: take train.save_strategy=steps, or leave "
            "train.save_steps out",
        ),
        (
            {"eval_strategy": "epoch", "eval_steps": 5},
            "train.eval_steps=5 has no effect with train.eval_strategy=epoch: take train.eval_strategy=steps, or "
            "train.eval_steps=null",
        ),
        (
            {"logging_strategy": "epoch", "logging_steps": 5},
            "train.logging_steps=5 has no effect with train.logging_strategy=epoch: take train.logging_strategy=steps, "
            "or leave train.logging_steps out",
        ),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 0.1},
            "train.warmup_steps=0.1 has no effect with train.lr_scheduler_type=constant: take "
            "train.lr_scheduler_type=constant_with_warmup, or train.warmup_steps=0",
        ),
        (
            {"optim": "sgd", "adam_beta2": 0.95},
            "train.adam_beta2=0.95 has no effect with train.optim=sgd: take another optimizer, or leave "
            "train.adam_beta2 out",
        ),
        (
            {"gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
            "train.gradient_checkpointing_kwargs={use_reentrant: false} has no effect with "
            "train.gradient_checkpointing=false: take train.gradient_checkpointing=true, or "
            "train.gradient_checkpointing_kwargs=null",
        ),
        (
            {"metric_for_best_model": "loss"},
            "train.metric_for_best_model='loss' has no effect with train.load_best_model_at_end=false: take "
            "train.load_best_model_at_end=true, or train.metric_for_best_model=null",
        ),
        (
            {"project": "mine", "report_to": "tensorboard"},
            "train.project='mine' has no effect with train.report_to='tensorboard': take train.report_to=trackio, or "
            "leave train.project out",
        ),
        (
            {"dataloader_persistent_workers": True},
            "train.dataloader_persistent_workers=true has no effect with train.dataloader_num_workers=0: take one "
            "worker or more, or leave train.dataloader_persistent_workers out",
        ),
    ],
)
def test_an_argument_that_another_silences_is_refused_by_name(train: dict[str, Any], line: str) -> None:
    assert unused(train) == [line]


def test_where_the_best_is_kept_checkpoints_follow_the_evaluation() -> None:
    assert unused({"eval_strategy": "epoch", "save_steps": 5}, keep_best=True) == [
        "train.save_steps=5 has no effect with train.save_strategy=epoch, which follows train.eval_strategy: take "
        "train.eval_strategy=steps, or leave train.save_steps out"
    ]


@pytest.mark.parametrize(
    ("train", "keep_best"),
    [
        ({"save_steps": 5, "eval_steps": 5, "logging_steps": 5}, False),
        ({"save_steps": 5}, True),
        ({"eval_strategy": "epoch", "eval_steps": None, "warmup_steps": 0, "lr_scheduler_type": "constant"}, False),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "optim": "adamw_torch"}, False),
        ({"optim": "ademamix", "adam_beta1": 0.8, "optim_args": "alpha=5"}, False),
        ({"metric_for_best_model": "loss"}, True),
        ({"metric_for_best_model": "loss", "lr_scheduler_type": "reduce_lr_on_plateau"}, False),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}, False),
        ({"report_to": ["tensorboard", "trackio"], "project": "mine"}, False),
    ],
)
def test_what_has_an_effect_passes(train: dict[str, Any], keep_best: bool) -> None:
    assert unused(train, keep_best=keep_best) == []
