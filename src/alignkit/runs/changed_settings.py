"""The settings of two starts of a run: what differs between them, but for what changes no bit of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from alignkit.jobs import JOBS, StageJob
from alignkit.runs.manifest import flat

# They change no bit of the result.
_MAY_CHANGE = ("name", "resume", "overwrite", "samples", "train.report_to", "ppo.gather")


def changed_settings(stage: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two records of settings, before and now, but for what changes no bit of a result.

    Args:
        stage: a key of `JOBS`, whose defaults stand for what a record does not name.
        before: nested, as recorded.
        now: nested, as given.
    """
    old, new = completed_settings(stage, before), completed_settings(stage, now)
    return {key: (old.get(key), new.get(key)) for key in differing(old, new)}


def completed_settings(stage: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the record of a job over the defaults of the settings, some of which may be newer than the record."""
    default: Any = JOBS[stage]()
    settled = default.settled() if isinstance(default, StageJob) else default
    completed = {**dict(flat(asdict(settled))), **dict(flat(job))}
    if stage == "ppo" and not (completed["ppo.kl_coef"] or completed["ppo.kl_coef_end"]):
        completed["ppo.max_kl"] = None  # earlier records name a limit where there is no penalty
    return completed


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the settings of two flat records that differ."""
    keys = sorted(old.keys() | new.keys())
    return [key for key in keys if old.get(key) != new.get(key) and key not in _MAY_CHANGE]
