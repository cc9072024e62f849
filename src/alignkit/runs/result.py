"""The result of a run, sealed with the checksums of its files, and told sound from damaged by whoever takes it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from alignkit.digests import digests
from alignkit.errors import AlignkitError, DamagedFile, RunError
from alignkit.json_files import get, read_object
from alignkit.runs.manifest import check_format
from alignkit.runs.taken import take

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
WEIGHTS = ".safetensors"
_KINDS = (WEIGHTS, ".json", ".jsonl", ".jinja", ".model", ".txt", ".py")
_RECORDS = (
    *("run.json", CHECKSUMS, "log.txt", "metrics.jsonl", "rows.jsonl", "first_rows.json", "rollouts.jsonl"),
    "report_card.json",
)
_FOLDERS = ("base", "value")  # below an adapter; a value function of its own
# What people change by hand to serve a model otherwise: that is said, and not refused.
_SETTINGS = ("config.json", "generation_config.json", "adapter_config.json")


def result_files(folder: Path) -> list[Path]:
    """List the files of a run, or of another model folder, that later commands read, in the order of their names."""
    return sorted(path for path in _files(folder) if path.suffix in _KINDS and path.name not in _RECORDS)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and path.name in _FOLDERS:
            yield from (inside for inside in path.iterdir() if inside.is_file())
        elif path.is_file() and not path.name.startswith("."):
            yield path


def seal_result(folder: Path) -> None:
    """Write the checksums of a result that is complete."""
    found = digests(result_files(folder), read_again=True)
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in sorted(found.items())
    }
    aside = folder / f".{CHECKSUMS}"
    aside.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    aside.replace(folder / CHECKSUMS)


def check_results(*folders: Path | None) -> None:
    """Check that runs that are taken as input are finished and as they were written; other folders pass.

    One process a node reads the files, and only those that it does not remember. Settings of the model that were
    changed since are said.

    Raises:
        RunError: one line for each file that is missing or damaged.
    """
    if int(os.environ.get("LOCAL_RANK", "0")):
        return
    problems = []
    for folder in dict.fromkeys(filter(None, folders)):
        take(folder)
        found, changed = result_problems(folder)
        problems += found
        for name in changed:
            logger.warning("%s of %s has changed since the run wrote it", name, folder)
    if problems:
        raise RunError(*problems)


def result_problems(folder: Path, *, read_again: bool = False) -> tuple[list[str], list[str]]:
    """List what is wrong with the files of a run, a line each, and its settings files that have changed.

    Args:
        folder: of the run; nothing is known of other folders, and of runs made before results had checksums.
        read_again: read files that are remembered, too.
    """
    path = folder / CHECKSUMS
    try:
        record = read_object(folder / "run.json") if (folder / "run.json").is_file() else {}
        check_format(record, folder)
        if record.get("format", 1) == 1 and not path.is_file():  # made before results had checksums
            return [], []
        if record.get("status", "finished") != "finished":
            return [f"{folder} is an unfinished run ({record['status']}): go on with resume=true"], []
        sealed = get(read_object(path), "files", dict, path)
        expected = {name: _facts(facts, path) for name, facts in sealed.items()}
    except AlignkitError as error:
        return list(error.problems), []
    return _differences(folder, expected, read_again=read_again)


def _facts(facts: object, path: Path) -> tuple[int, str]:
    if not isinstance(facts, dict):
        raise DamagedFile(f"{path} is damaged: what it says of a file is no object")
    return get(facts, "size", int, path), get(facts, "sha256", str, path)


def _differences(
    folder: Path, expected: dict[str, tuple[int, str]], *, read_again: bool
) -> tuple[list[str], list[str]]:
    problems, changed = [], []
    whole = []
    for name, (size, _) in expected.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{folder} is not complete: {name}, which the run wrote, is missing")
        elif file.stat().st_size != size and name not in _SETTINGS:
            problems.append(f"{file} is damaged: it has {file.stat().st_size} bytes instead of {size}")
        else:
            whole.append(file)
    for file, digest in digests(whole, read_again=read_again).items():
        name = str(file.relative_to(folder))
        if digest != expected[name][1] and name in _SETTINGS:
            changed.append(name)
        elif digest != expected[name][1]:
            problems.append(f"{file} is damaged: it is not what the run wrote, its checksum differs")
    if problems:
        problems.append(
            "train it again, or take the files from a copy; if it was you who changed one, remove it from "
            f"{folder / CHECKSUMS}"
        )
    return problems, changed
