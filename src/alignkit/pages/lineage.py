"""What a run came from, as far back as there are records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkit.runs.found import FoundRun
from alignkit.runs.manifest import read_manifest

_MODEL = "model.name"
_COMMANDS = ("evaluate", "compare")  # they look at models and make none


@dataclass(frozen=True)
class Line:
    """A line of descent.

    Attributes:
        role: which model of the run at the end of another line this one leads to; empty for a run that is asked for.
        base: the model that no run made.
        folders: of the runs from there on; one may be gone.
    """

    role: str
    base: str
    folders: list[Path]


def chain_of(runs: Sequence[FoundRun]) -> list[FoundRun]:
    """List runs and all they came from, each once, after those it starts from; parents that are gone are left out."""
    chain: dict[Path, FoundRun] = {}
    seen = set[Path]()

    def follow(run: FoundRun) -> None:
        if run.folder.resolve() not in seen:
            seen.add(run.folder.resolve())
            for parent in run.parents:
                if (manifest := read_manifest(parent)) is not None:
                    follow(FoundRun(parent, manifest))
            chain[run.folder.resolve()] = run

    for run in runs:
        follow(run)
    return list(chain.values())


def lines_of(runs: Sequence[FoundRun], chain: Sequence[FoundRun]) -> Iterator[Line]:
    """Draw the descent of runs: of each the line of its own model, then those of references, rewards and the like.

    Args:
        runs: that are asked for.
        chain: these and all they came from.
    """
    known = {run.folder.resolve(): run for run in chain}
    own = [_line("", run.folder.resolve(), known) for run in runs if run.stage not in _COMMANDS]
    for line in own:
        if not any(line != other and other.folders[: len(line.folders)] == line.folders for other in own):
            yield line
    for run in chain:
        for setting, parent in _parents(run):
            if setting != _MODEL and run.stage not in _COMMANDS:
                yield _line(f"{role_of(setting)} of {run.folder.name}", parent, known)


def role_of(setting: str) -> str:
    """Name what a run takes a model for, by the setting that names it: `reward[0].model` is a reward."""
    return re.split(r"[.\[]", setting)[0]


def base_of(run: FoundRun) -> str:
    """Name the model that a run without parents started from."""
    model = run.manifest.get("job", {}).get("model", {})
    if model.get("init") == "random":
        kind = (model.get("config") or {}).get("model_type") or model.get("name", "?")
        return f"random weights ({kind})"
    return str(model.get("name", "?"))


def _parents(run: FoundRun) -> list[tuple[str, Path]]:
    entries = run.manifest.get("parents", [])
    return [(str(entry.get("setting", _MODEL)), folder) for entry, folder in zip(entries, run.parents, strict=True)]


def _line(role: str, folder: Path, known: dict[Path, FoundRun]) -> Line:
    folders, base = [folder], "?"
    while (run := known.get(folders[0])) is not None:
        base = base_of(run)
        parent = dict(_parents(run)).get(_MODEL)
        if parent is None or parent in folders:
            break
        folders.insert(0, parent)
    return Line(role, "?" if folders[0] not in known else base, folders)
