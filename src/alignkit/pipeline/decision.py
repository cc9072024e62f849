"""Whether a step runs, goes on or is skipped, and why: what it is now beside what its run was made of."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from alignkit.commands.merge import settings_with_forms
from alignkit.errors import RunError
from alignkit.pipeline.composed import Composed
from alignkit.runs.changed_settings import changed_settings
from alignkit.runs.manifest import check_format, read_manifest
from alignkit.runs.result import result_problems
from alignkit.stages.inputs import changed_inputs

_SHOWN = 3  # reasons in a line
_LONGEST = 40  # characters of a value


class Action(StrEnum):
    run = "run"  # from the start; what is there is replaced
    resume = "resume"  # where it stopped
    skip = "skip"


@dataclass(frozen=True)
class Decision:
    """What becomes of a step.

    Attributes:
        action: what is done.
        reasons: why, a phrase each.
    """

    action: Action
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        hidden = len(self.reasons) - _SHOWN
        return "; ".join(self.reasons[:_SHOWN]) + (f"; and {hidden} more" if hidden > 0 else "")


def decide(composed: Composed, *, changing: Collection[str] = (), again: bool = False) -> Decision:
    """Decide what becomes of a step.

    Args:
        composed: the step.
        changing: steps that will run before it, in a plan.
        again: it was asked for: a finished run is not skipped.

    Raises:
        RunError: its folder holds something else, or was written by a later version.
    """
    folder = composed.folder
    manifest = read_manifest(folder)
    if manifest is None:
        return Decision(Action.run, ("it has not run",))
    check_format(manifest, folder)
    first = [name for name in composed.refers if name in changing]
    if first:
        return Decision(Action.run, tuple(f"{name} runs before it" for name in first))
    changes = tuple(_changes(composed, manifest))
    if manifest["status"] != "finished":
        return _unfinished(composed, manifest, changes)
    damaged = result_problems(folder)[0] if not changes else []
    if damaged:
        changes = (damaged[0],)
    if not changes and not again:
        return Decision(Action.skip, ("nothing has changed",))
    return Decision(Action.run, changes or ("asked for",))


def _unfinished(composed: Composed, manifest: dict[str, Any], changes: tuple[str, ...]) -> Decision:
    how = {"running": "it was killed", "failed": "it failed", "interrupted": "it was interrupted"}
    status = how.get(manifest["status"], f"it is {manifest['status']}")
    if changes:
        return Decision(Action.run, (status, *changes))
    return Decision(Action.resume if composed.step.is_stage else Action.run, (status,))


def _changes(composed: Composed, manifest: dict[str, Any]) -> Iterator[str]:
    kind = composed.step.kind
    if manifest.get("stage") != kind:
        yield f"it was a run of {manifest.get('stage')}"
        return
    record = settings_with_forms(composed.job, composed.record) if kind == "merge" else composed.record
    for key, (was, now) in changed_settings(kind, manifest.get("job", {}), record).items():
        yield f"{key} was {_value(was)} and is {_value(now)}"
    for what, change in changed_inputs(manifest.get("inputs", {}), composed.inputs()):
        yield f"the {what} " + {"gone": "is gone", "new": "is new", "other": "has changed"}[change]
    version, before = metadata.version("alignkit"), manifest.get("versions", {}).get("alignkit")
    if before != version:
        yield f"alignkit was {before} and is {version}"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def check_taken(composed: Composed, *, by: str, folder: Path, option: str) -> None:
    """Check that a step that is taken as it is has finished.

    Args:
        composed: the step.
        by: the step that starts from it.
        folder: of its run.
        option: that leaves it out.

    Raises:
        RunError: it has not.
    """
    manifest = read_manifest(folder)
    status = "has not run" if manifest is None else f"has not finished ({manifest['status']})"
    if manifest is None or manifest["status"] != "finished":
        raise RunError(
            f"{by} starts from {composed.step.name}, which {status}: {folder}; run it first, without {option}"
        )
