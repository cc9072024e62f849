"""Arguments of upstream's trainer that have no effect beside others: accepted there in silence, refused here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.errors import as_yaml

_WITHOUT_WARMUP = {"constant": "constant_with_warmup", "reduce_lr_on_plateau": "linear", "greedy": "linear"}
_ADAM_LIKE = ("adam", "adem", "lion")  # in the name of an optimizer that takes betas
_TAKE_NO_ARGUMENTS = ("adamw_torch", "adamw_torch_fused", "adafactor")
_TRACKIO = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")


def unused_arguments(train: Mapping[str, Any], strategies: Mapping[str, str], *, keep_best: bool) -> list[str]:
    """List the arguments that have no effect, one line each, with what to type instead.

    Args:
        train: the section, as given; what is null in it is not given.
        strategies: `eval_strategy` and `save_strategy` as they will be; the second is that of the evaluation where the
            best checkpoint is kept.
        keep_best: the result is the checkpoint with the best figure.
    """
    given = {key: value for key, value in train.items() if value is not None}
    problems = [*_intervals(given, strategies), *_best(given, strategies, keep_best=keep_best)]
    return [*problems, *_schedule(given), *_optimizer(given), *_others(given)]


def _intervals(given: Mapping[str, Any], strategies: Mapping[str, str]) -> Iterator[str]:
    in_force = {"logging": given.get("logging_strategy", "steps")}
    in_force |= {what: strategies[f"{what}_strategy"] for what in ("eval", "save")}
    for what, strategy in in_force.items():
        key, other = f"{what}_steps", f"{what}_strategy"
        if key in given and strategy != "steps":
            follows = "" if other in given else ", which follows train.eval_strategy"
            steps = other if other in given else "eval_strategy"
            yield _line(given, key, f"{other}={strategy}{follows}", f"take train.{steps}=steps", null=what == "eval")
    if given.get("eval_delay") and in_force["eval"] == "no":
        yield _line(given, "eval_delay", "eval_strategy=no", "take another eval_strategy")
    if given.get("save_only_model") and in_force["save"] == "no":
        yield _line(given, "save_only_model", "save_strategy=no", "take another save_strategy")


def _best(given: Mapping[str, Any], strategies: Mapping[str, str], *, keep_best: bool) -> Iterator[str]:
    looks = keep_best or strategies["save_strategy"] == "best"
    looks = looks or given.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    for key in ("metric_for_best_model", "greater_is_better"):
        if key in given and not looks:
            yield _line(given, key, "load_best_model_at_end=false", "take train.load_best_model_at_end=true", null=True)


def _schedule(given: Mapping[str, Any]) -> Iterator[str]:
    kind = given.get("lr_scheduler_type", "linear")
    if given.get("warmup_steps") and kind in _WITHOUT_WARMUP:
        way_out = f"take train.lr_scheduler_type={_WITHOUT_WARMUP[kind]}, or train.warmup_steps=0"
        yield _line(given, "warmup_steps", f"lr_scheduler_type={kind}", way_out, complete=True)
    if given.get("lr_scheduler_kwargs") and kind == "constant":
        yield _line(given, "lr_scheduler_kwargs", "lr_scheduler_type=constant", "take another schedule", null=True)


def _optimizer(given: Mapping[str, Any]) -> Iterator[str]:
    optimizer = str(given.get("optim", "adamw_torch_fused"))
    for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if key in given and not any(word in optimizer for word in _ADAM_LIKE):
            yield _line(given, key, f"optim={optimizer}", "take another optimizer")
    if given.get("optim_args") and optimizer in _TAKE_NO_ARGUMENTS:
        yield _line(given, "optim_args", f"optim={optimizer}", "take another optimizer", null=True)
    if given.get("optim_target_modules") and not any(word in optimizer for word in ("galore", "apollo")):
        way_out = "take an optimizer of GaLore or APOLLO"
        yield _line(given, "optim_target_modules", f"optim={optimizer}", way_out, null=True)


def _others(given: Mapping[str, Any]) -> Iterator[str]:
    for name in ("gradient_checkpointing", "activation_checkpointing"):
        if given.get(f"{name}_kwargs") and not (
            given.get("gradient_checkpointing") or given.get("activation_checkpointing")
        ):
            yield _line(given, f"{name}_kwargs", f"{name}=false", f"take train.{name}=true", null=True)
    workers = given.get("dataloader_num_workers", 0)
    for key in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        if given.get(key) and not workers:
            yield _line(given, key, "dataloader_num_workers=0", "take one worker or more")
    asked = given.get("report_to") or []
    if not {"all", "trackio"} & {*([asked] if isinstance(asked, str) else asked)}:
        for key in _TRACKIO:
            if key in given:
                yield _line(given, key, f"report_to={as_yaml(asked or 'none')}", "take train.report_to=trackio")


def _line(
    given: Mapping[str, Any], key: str, beside: str, way_out: str, *, null: bool = False, complete: bool = False
) -> str:
    rest = "" if complete else f", or train.{key}=null" if null else f", or leave train.{key} out"
    return f"train.{key}={as_yaml(given[key])} has no effect with train.{beside}: {way_out}{rest}"
