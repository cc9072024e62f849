"""Checkpoint folders that are complete or absent, and that can be told sound from damaged.

A checkpoint is written into `checkpoint-N.partial`, sealed with the checksums of its files, synced, and only then
renamed to `checkpoint-N`. What is to go is renamed to `checkpoint-N.discarded`: a name without an ending is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKSUMS = "checksums.json"
_NAME = re.compile(r"checkpoint-(\d+)(\.partial|\.discarded)?")


def step_of(folder: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    name = _NAME.fullmatch(folder.name)
    assert name, f"{folder} is no checkpoint"
    return int(name[1])


def checkpoints(run_dir: Path) -> list[Path]:
    """List the whole checkpoints of a run, oldest step first."""
    return sorted((p for p in _folders(run_dir) if p.suffix == ""), key=step_of)


def newest_sound(run_dir: Path) -> tuple[Path | None, list[str]]:
    """Find the checkpoint to go on from.

    Returns:
        The newest checkpoint whose files all have the checksums they were sealed with (None if there is none), and one
        line for each newer one that was passed over: its name and what is wrong with it.
    """
    passed_over: list[str] = []
    for folder in reversed(checkpoints(run_dir)):
        problem = damage(folder, to_resume=True)
        if not problem:
            return folder, passed_over
        passed_over.append(f"{folder.name}: {problem}")
    return None, passed_over


def damage(folder: Path, *, to_resume: bool = False) -> str:
    """Say what is wrong with a checkpoint; empty where nothing is.

    Args:
        folder: the checkpoint.
        to_resume: also ask for what training needs to go on, not the weights alone.
    """
    try:
        sealed = json.loads((folder / CHECKSUMS).read_bytes())
        files, resumable = dict(sealed["files"]), sealed["resumable"]
    except FileNotFoundError:
        return f"it was never sealed ({CHECKSUMS} is missing)"
    except (ValueError, KeyError, TypeError):
        return f"its {CHECKSUMS} cannot be read"
    if to_resume and not resumable:
        return "it holds weights only (train.save_only_model=true), no optimizer to go on with"
    for name, facts in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        size = (folder / name).stat().st_size
        if size != facts["size"]:
            return f"{name} has {size} bytes instead of {facts['size']}"
    for name, digest in _digests(folder, list(files)):
        if digest != files[name]["sha256"]:
            return f"{name} is not what was written (its checksum differs)"
    return ""


def seal(partial: Path, *, resumable: bool) -> None:
    """Write the checksums of a finished partial checkpoint, sync everything, and give it its name.

    Args:
        partial: `checkpoint-N.partial`, all of its files written.
        resumable: whether it holds what training needs to go on, not the weights alone.
    """
    names = [str(path.relative_to(partial)) for path in sorted(partial.rglob("*")) if path.is_file()]
    files = {
        name: {"size": (partial / name).stat().st_size, "sha256": digest} for name, digest in _digests(partial, names)
    }
    (partial / CHECKSUMS).write_text(json.dumps({"resumable": resumable, "files": files}, indent=1) + "\n")
    # safetensors creates its files for the owner alone; whoever may read the run may read its weights.
    mode = (partial / CHECKSUMS).stat().st_mode & 0o777
    for path in partial.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        _sync(path)
    _sync(partial)
    final = partial.with_suffix("")
    replaced = _set_aside(final) if final.exists() else None
    partial.rename(final)
    _sync(final.parent)
    if replaced:
        shutil.rmtree(replaced)


def discard(folder: Path) -> None:
    """Remove a checkpoint so that being killed half way leaves nothing that looks whole."""
    shutil.rmtree(_set_aside(folder))


def rotate(run_dir: Path, *, limit: int | None, newest: Path, keep: set[Path]) -> None:
    """Remove the oldest checkpoints until `limit` are left, but never one of `keep`.

    Steps beyond `newest`, the one just written, belong to a past that a resume has passed over, and go first.
    """
    others = [p for p in checkpoints(run_dir) if p not in keep]
    others.sort(key=lambda p: (step_of(p) <= step_of(newest), step_of(p)))
    for folder in others[: max(0, len(others) + len(keep) - limit) if limit else 0]:
        discard(folder)


def clear_leftovers(run_dir: Path) -> None:
    """Remove what a killed process left behind, but finish a checkpoint that only lacked its name."""
    for folder in list(_folders(run_dir)):
        final = folder.with_suffix("")
        if folder.suffix == ".partial" and not final.exists() and not damage(folder):
            folder.rename(final)
        elif folder.suffix:
            shutil.rmtree(folder)


def _folders(run_dir: Path) -> Iterator[Path]:
    return (p for p in run_dir.glob("checkpoint-*") if _NAME.fullmatch(p.name) and p.is_dir())


def _set_aside(folder: Path) -> Path:
    return folder.rename(folder.with_suffix(".discarded"))


def _digests(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        yield from zip(names, threads.map(digest, names), strict=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
