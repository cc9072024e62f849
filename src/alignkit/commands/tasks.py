"""Measure models on tasks of the `lm-eval` harness, each in the template it was trained with."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from transformers import set_seed

from alignkit.errors import ConfigError, did_you_mean
from alignkit.evaluate.arguments import check_models, check_new_file
from alignkit.evaluate.report import write_report
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.table import format_table
from alignkit.jobs import TasksJob
from alignkit.models.memory import explain_out_of_memory
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.runs.output import outputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """One figure of one task.

    Attributes:
        task: or group of tasks.
        name: of the metric, with its filter where there is one.
        value: as the harness reports it.
        standard_error: None if the harness reports none.
        num_rows: how many rows were measured; None for a group.
        num_fewshot: solved rows shown before each; None for a group.
    """

    task: str
    name: str
    value: float
    standard_error: float | None
    num_rows: int | None
    num_fewshot: int | None


def run(
    job: TasksJob,
    *,
    runs: Sequence[str],
    tasks: Sequence[str],
    out: Path | None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Measure every model on every task; a table in the terminal, and JSON where asked for.

    Args:
        job: the settings.
        runs: the models.
        tasks: names that the harness has (tasks, groups or tags), or YAML files of tasks.
        out: the JSON file.
        record: the settings as they were given, interpolations unresolved: as such they are written out.

    Raises:
        ConfigError, ModelError: the user's mistake, before a model is loaded.
    """
    with outputs(out=out):
        with run_log(ASIDE), explain_out_of_memory("lower batch_size"):
            problems = check_models(runs, job.model, distinct=True) + check_new_file(out)
            if problems := problems + check_tasks(tasks, job.num_fewshot):
                raise ConfigError(*dict.fromkeys(problems))
            policies = [ServedModel.of(replace(job.model, name=name), job.template) for name in runs]
            found = {policy.name: _measured(job, policy, tasks) for policy in policies}
        console = SafeConsole()
        console.print(metrics_table(found), markup=False, highlight=False)
        if out is not None:
            measured = [
                {"name": name, "tasks": [asdict(metric) for metric in metrics]} for name, metrics in found.items()
            ]
            write_report(out, settings=record or asdict(job), runs=measured)


@cache
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()  # reads thousands of files


def check_tasks(tasks: Sequence[str], num_fewshot: int | None = None) -> list[str]:
    """List what is wrong with `--tasks`, one line each; reads the rows of tasks whose names and files exist."""
    if importlib.util.find_spec("lm_eval") is None:
        return ["--tasks: lm-eval is not installed: pip install 'alignkit[eval]'"]
    known = _manager().all_tasks
    problems = [] if tasks else ["--tasks names none: give names that lm-eval has, or YAML files"]
    problems += [f"--tasks {name} is named twice" for name in dict.fromkeys(tasks) if list(tasks).count(name) > 1]
    for name in dict.fromkeys(tasks):
        if name.endswith((".yaml", ".yml")):
            problem = "" if Path(name).is_file() else "there is no such file"
        elif name in known:
            problem = ""
        else:
            hint = did_you_mean(name, known) or "; a task of your own is a file.yaml"
            problem = f"lm-eval has no such task{hint}"
        if problem or (problem := _loading_problem(name, num_fewshot)):
            problems.append(f"--tasks {name}: {problem}")
    return problems


def _loading_problem(name: str, num_fewshot: int | None) -> str:
    try:
        tasks = _manager().load([name])["tasks"]
    except Exception as error:  # a task's YAML, its own code, or its download may fail in any way
        return f"it cannot be loaded: {type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"
    unsafe = sorted(task for task, loaded in tasks.items() if getattr(loaded, "UNSAFE_CODE", False))
    if unsafe:
        return f"{unsafe[0]} runs code that the model writes, which is not done here"
    fixed = sorted(task for task, loaded in tasks.items() if loaded.get_config("num_fewshot") == 0)
    if num_fewshot and fixed:  # its prompts hold the solved rows already, or must not
        return f"num_fewshot={num_fewshot} has no effect on {fixed[0]}, which is fixed at 0: leave it out"
    return ""


def _measured(job: TasksJob, policy: ServedModel, tasks: Sequence[str]) -> list[Metric]:
    from lm_eval.evaluator import evaluate

    from alignkit.evaluate.harness import TrainedModel

    model = TrainedModel(policy.load(seed=job.seed), job.batch_size)
    loaded = _manager().load(list(tasks))
    for task in loaded["tasks"].values():
        if job.num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", job.num_fewshot or 0)
        task.set_fewshot_seed(job.seed)
    set_seed(job.seed)
    try:
        results = evaluate(
            model,
            loaded,
            limit=job.limit,
            log_samples=False,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    except (AssertionError, ValueError) as error:  # how the harness refuses a task that does not fit a model
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"--tasks: lm-eval cannot run on {policy.name}: {reason}") from error
    if model.num_cut:
        logger.warning(
            "%s: %d prompts are longer than its %d positions and lost their beginning",
            policy.name,
            model.num_cut,
            model.max_length,
        )
    policy.unload()
    return _metrics(results)


def _metrics(results: Mapping[str, Any]) -> list[Metric]:
    """From the harness's `{task: {"acc,none": 0.5, "acc_stderr,none": 0.1, …}}`."""
    metrics = []
    for task, figures in results["results"].items():
        sizes = results.get("n-samples", {}).get(task, {})
        for key, value in figures.items():
            name, comma, filtered = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = figures.get(f"{name}_stderr,{filtered}")
            metrics.append(
                Metric(
                    task,
                    name if filtered == "none" else f"{name} ({filtered})",
                    float(value),
                    float(error) if isinstance(error, (int, float)) else None,
                    sizes.get("effective"),
                    results.get("n-shot", {}).get(task) if sizes else None,
                )
            )
    return metrics


def metrics_table(found: Mapping[str, Sequence[Metric]]) -> str:
    """Format one line for each metric and one column for each model; ± is the standard error."""
    rows: dict[str, dict[str, str]] = {}
    for model, metrics in found.items():
        for metric in metrics:
            row = rows.setdefault(f"{metric.task} {metric.name}", {})
            if metric.num_rows is not None:
                row["rows"], row["few-shot"] = f"{metric.num_rows:,}", str(metric.num_fewshot)
            error = "" if metric.standard_error is None else f" ± {metric.standard_error:.4f}"
            row[model] = f"{metric.value:.4f}{error}"
    return format_table(list(rows), list(rows.values()))
