"""What the stages' trainers are given alike, and asked alike when they are done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback

from alignkit.data.sets.loaded import EncodedData, Set
from alignkit.jobs import StageJob
from alignkit.stages.live_report import LiveReport
from alignkit.training.metrics import MetricsFile


def build_callbacks(job: StageJob, run_dir: Path, *others: TrainerCallback) -> list[TrainerCallback]:
    """Build the metrics file, a stage's own callbacks, the page, and early stopping where the job asks for it."""
    early = [EarlyStoppingCallback(job.early_stopping)] if job.early_stopping else []
    return [MetricsFile(run_dir / "metrics.jsonl"), *others, LiveReport(run_dir), *early]


def filled(data: EncodedData[Set], args: Any) -> tuple[Set, dict[str, Set]]:
    """Return the training rows and the held-out ones, filled so that every process has as many batches.

    Args:
        data: what was read.
        args: upstream's, of the trainer.
    """
    train = data.train.filled(args.per_device_train_batch_size * args.world_size)
    num_together = args.per_device_eval_batch_size * args.world_size
    return train, {name: rows.filled(num_together) for name, rows in data.evals.items()}


def eval_dataset(sets: Mapping[str, Any]) -> dict[str, Dataset] | Dataset | None:
    """Name the held-out sets as a trainer takes them.

    Upstream puts the names of several sets into the metrics' names; a single set is simply `eval`.

    Args:
        sets: by name, each with its `dataset`.
    """
    datasets = {name: rows.dataset for name, rows in sets.items()}
    return datasets if len(datasets) > 1 else next(iter(datasets.values()), None)


def kept_step(trainer: Any) -> int | None:
    """Return the step whose weights are the result: the best checkpoint's; None for the last."""
    return trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
