"""Upstream's training arguments as PPO chooses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.jobs import PpoJob
from alignkit.stages.sections import build_arguments


def build_ppo_arguments(job: PpoJob, run_dir: Path, *, record: Mapping[str, Any], held_out: bool) -> Any:
    """Build upstream's argument object, counted in updates.

    Where prompts are held out, the result is the checkpoint with the best score on them.
    """
    every = max(1, job.ppo.num_updates // 10)
    chosen: dict[str, Any] = {"max_steps": job.ppo.num_updates, "save_strategy": "steps", "save_steps": every}
    if held_out and job.train.get("eval_strategy") != "no":
        chosen |= {"eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True}
        chosen |= {"metric_for_best_model": "score", "greater_is_better": True}
        given = {key: job.train[key] for key in ("save_steps", "eval_steps") if job.train.get(key)}
        chosen |= {"save_steps": given["eval_steps"]} if "eval_steps" in given else {}
        chosen |= {"eval_steps": given["save_steps"]} if "eval_steps" not in given and given else {}  # each is scored
    chosen_job = replace(job, train={**chosen, **job.train})
    return build_arguments(chosen_job, "ppo", run_dir, record=record, held_out=held_out)
