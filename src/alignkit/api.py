"""alignkit in a notebook or a script: a job from the words of the command line, and its run.

Nothing heavy is imported before a job runs. A mistake raises an `AlignkitError` with all mistakes in its `problems`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from alignkit.errors import ConfigError, did_you_mean
from alignkit.home import expand_home
from alignkit.jobs import JOBS, DpoJob, PpoJob, RewardJob, SftJob, StageJob, out_of_bounds, path_problems

if TYPE_CHECKING:
    from transformers import TrainerCallback

__all__ = ["RunResult", "job", "run"]


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        folder: of the run, which every command takes as a model.
        figures: as in `run.json`, such as `{"eval_loss": {"first": 5.5, "last": 3.1}, …}`.
    """

    folder: Path
    figures: dict[str, Any]


@overload
def job(stage: Literal["sft"], *words: str, config_dir: Path | None = None) -> SftJob: ...
@overload
def job(stage: Literal["reward"], *words: str, config_dir: Path | None = None) -> RewardJob: ...
@overload
def job(stage: Literal["dpo"], *words: str, config_dir: Path | None = None) -> DpoJob: ...
@overload
def job(stage: Literal["ppo"], *words: str, config_dir: Path | None = None) -> PpoJob: ...
def job(stage: str, *words: str, config_dir: Path | None = None) -> StageJob:
    """Compose the job of a stage, as `alignkit STAGE WORDS` does.

    Args:
        stage: sft, reward, dpo or ppo.
        *words: `key=value`, `group=option` and `config=FILE`; a later one overrides an earlier one.
        config_dir: a folder of your own group options and files.

    Raises:
        ConfigError: every mistake in the words and files.
    """
    from alignkit.launch import compose_job

    stages = [name for name, one in JOBS.items() if issubclass(one, StageJob)]
    if stage not in stages:
        raise ConfigError(f"there is no stage '{stage}', only {', '.join(stages)}{did_you_mean(stage, stages)}")
    composed: StageJob = compose_job(stage, list(words), config_dir=config_dir)
    return composed


def run(
    job: StageJob,
    folder: str | Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: type[Any] | None = None,
) -> RunResult:
    """Train.

    Args:
        job: from `job`, or built from the dataclasses of `alignkit.jobs`.
        folder: of the run; nothing else is written to.
        callbacks: of transformers, told of every step.
        trainer_class: a subclass of the stage's own trainer, such as `alignkit.training.sft.SftTrainer`.

    Raises:
        AlignkitError: every mistake that was found, or what stopped the training, in words.
    """
    if problems := [*_unknown_keys(job), *path_problems(job), *out_of_bounds(job)]:
        raise ConfigError(*problems)
    folder = Path(expand_home(str(folder)))
    chosen = {} if trainer_class is None else {"trainer_class": trainer_class}
    import_module(f"alignkit.stages.{job.stage}.run").run(job, folder, callbacks=callbacks, **chosen)
    from alignkit.runs.manifest import read_manifest

    return RunResult(folder, (read_manifest(folder) or {}).get("result", {}))


def _unknown_keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Python lets anyone assign to `job.sample`, which no stage reads."""
    known = [item.name for item in fields(section)]
    for key, value in vars(section).items():
        if key not in known:
            yield f"unknown key '{prefix}{key}'{did_you_mean(key, known)}"
        elif is_dataclass(value):
            yield from _unknown_keys(value, f"{prefix}{key}.")
