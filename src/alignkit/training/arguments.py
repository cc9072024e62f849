"""What we tell upstream's training arguments when the user has not: facts of the machine and of the data at hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from alignkit.errors import did_you_mean

TRACKERS = ("mlflow", "tensorboard", "trackio", "wandb")  # the extras of alignkit that are one


def chosen_arguments(
    train: Mapping[str, Any], *, run_dir: Path, seed: int, bf16: bool, held_out: bool, keep_best: bool
) -> dict[str, Any]:
    """Lay the user's `train` section over the defaults that depend on machine and data, and ours over both.

    Args:
        train: as given; only keys that upstream has.
        run_dir: checkpoints go below it.
        seed: of the trainer.
        bf16: whether this machine computes in bfloat16 and the model's dtype allows it.
        held_out: there are rows to evaluate on.
        keep_best: the result is the checkpoint with the lowest held-out loss (early stopping needs it too).
    """
    defaults: dict[str, Any] = {
        "bf16": bf16 and not train.get("fp16", False),
        "eval_strategy": interval_strategies(train, held_out=held_out, keep_best=keep_best)["eval_strategy"],
        "eval_on_start": held_out,
        "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
        "use_cpu": not torch.accelerator.is_available(),  # upstream refuses bfloat16 on a CPU that it was not told of
        "ddp_find_unused_parameters": False,  # every trained weight takes part in every step; looking costs one
        "per_device_eval_batch_size": train.get("per_device_train_batch_size", 8),
    }
    if keep_best or train.get("load_best_model_at_end"):
        chosen = interval_strategies(train, held_out=held_out, keep_best=True)
        defaults |= {"load_best_model_at_end": True, **chosen}
        if train.get("eval_steps") is not None:
            defaults["save_steps"] = train["eval_steps"]
        elif "save_steps" in train and chosen["eval_strategy"] == "steps":
            defaults["eval_steps"] = train["save_steps"]
    ours = {
        "output_dir": str(run_dir / "checkpoints"),
        "seed": seed,
        "disable_tqdm": False,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
    }
    return {**defaults, **train, **ours}


def interval_strategies(
    train: Mapping[str, Any], *, held_out: bool, keep_best: bool, in_updates: bool = False
) -> dict[str, str]:
    """Settle when a run evaluates and when it writes checkpoints, as `no`, `steps`, `epoch` or `best`.

    Args:
        train: as given; a number of steps alone asks for `steps`.
        held_out: there are rows to evaluate on.
        keep_best: the best checkpoint is kept, so one is written after each evaluation.
        in_updates: the stage has no epochs.
    """
    by_steps = train.get("eval_steps") is not None
    by_steps |= keep_best and "save_steps" in train and train.get("save_strategy", "steps") == "steps"
    by_default = "no" if not held_out else "steps" if by_steps or in_updates else "epoch"
    evaluation = str(train.get("eval_strategy", by_default))
    return {
        "eval_strategy": evaluation,
        "save_strategy": str(train.get("save_strategy", evaluation if keep_best else "steps")),
    }


def write_as_given(args: Any, given: Mapping[str, Any]) -> None:
    """Let upstream write its arguments out as they were given: a value of `${oc.env:TOKEN}` stays in memory.

    Checkpoints, TensorBoard and other loggers all write what `to_dict` returns.

    Args:
        args: built from these settings.
        given: the section `train`, interpolations unresolved.
    """
    unresolved = {key: value for key, value in given.items() if "${" in repr(value)}
    if unresolved:
        args.to_dict = partial(_unresolved_dict, args, unresolved)  # not a closure: upstream pickles its arguments


def _unresolved_dict(args: Any, unresolved: dict[str, Any]) -> dict[str, Any]:
    return {**type(args).to_dict(args), **unresolved}


def rows_a_step(args: Any) -> int:
    """Count the rows of an optimizer step: on every process, in every batch whose gradients are added up."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def check_report_to(train: Mapping[str, Any]) -> list[str]:
    """List the trackers of `train.report_to` that are unknown or not installed, one line each."""
    asked, installed = train.get("report_to") or [], get_available_reporting_integrations()
    problems = []
    for name in [asked] if isinstance(asked, str) else asked:
        if name in ("all", "none", "flyte", *installed):  # upstream does not look for flyte
            continue
        if name in INTEGRATION_TO_CALLBACK:
            way_out = f"pip install 'alignkit[{name}]'" if name in TRACKERS else "install it, or leave it out"
            problems.append(f"train.report_to={name}: its package is not installed: {way_out}")
        else:
            hint = (
                did_you_mean(str(name), INTEGRATION_TO_CALLBACK) or f"; it can be {', '.join(INTEGRATION_TO_CALLBACK)}"
            )
            problems.append(f"train.report_to: there is no tracker '{name}'{hint}")
    return problems


def check_evaluation(
    train: Mapping[str, Any], *, held_out: bool, early_stopping: int | None, keep_best: bool = False
) -> list[str]:
    """List the settings that ask for held-out rows where there are none, one line each.

    Args:
        train: the section.
        held_out: there are rows to evaluate on.
        early_stopping: of the job.
        keep_best: the best checkpoint is the result whatever else is set: only what was evaluated may be written.
    """
    if held_out:
        return _best_problems(train) if keep_best or early_stopping or train.get("load_best_model_at_end") else []
    asking = [f"train.{key}" for key in ("load_best_model_at_end", "eval_on_start") if train.get(key)]
    asking += ["train.eval_strategy"] if train.get("eval_strategy", "no") != "no" else []
    asking += [f"train.{key}" for key in ("eval_steps", "eval_delay") if train.get(key) is not None]
    asking += ["early_stopping"] if early_stopping else []
    return [f"{key} needs held-out rows: data.eval_path or data.eval_fraction" for key in asking]


def _best_problems(train: Mapping[str, Any]) -> list[str]:
    """List what keeps the best checkpoint from being evaluated and written, one line each, as the user set it."""
    why, problems = "the best checkpoint is kept, so each is evaluated when it is written", []
    save, evaluation = train.get("save_strategy"), train.get("eval_strategy")
    if save not in (None, "best", evaluation or save):
        problems.append(
            f"train.save_strategy={save} and train.eval_strategy={evaluation}: {why}; leave save_strategy out"
        )
    every, steps = train.get("save_steps"), train.get("eval_steps")
    if isinstance(every, int) and isinstance(steps, int) and steps > 0 and every % steps:
        problems.append(
            f"train.save_steps={every} is no multiple of train.eval_steps={steps}: {why}; leave save_steps out, or "
            f"take a multiple"
        )
    return problems
