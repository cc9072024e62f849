"""A file of answers in the order of their prompts: a run that was interrupted continues after its last line.

Beside it, `<file>.settings.json` says what it was made with: an interrupted file is continued only by the same model,
prompts and settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, OutputError, as_yaml
from alignkit.json_files import read_object
from alignkit.models.source import local_folder


class AnswerFile:
    """JSON lines at `path`, of which the first `num_done` are there.

    Args:
        path: of the file.
        settings: what shapes the answers, dotted key to value.

    Raises:
        ConfigError: the file exists and belongs to other settings, or was not made like this at all.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self.num_done = self._sound_lines() if path.exists() else 0

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        try:
            self._append(rows)
        except OSError as error:
            raise OutputError(
                f"--out {self.path} cannot be written: {error.strerror}; {self.num_done} responses are in it, and the "
                "same command continues it where there is room"
            ) from error
        self.num_done += len(rows)

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.num_done == 0 and not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _beside(self.path).write_text(json.dumps(self.settings, indent=2) + "\n", encoding="utf-8")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def _sound_lines(self) -> int:
        before = read_object(_beside(self.path))
        now = json.loads(json.dumps(self.settings))
        changed = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
        if changed:
            raise ConfigError(
                *(
                    f"--out {self.path} belongs to other settings: {key} was {as_yaml(before.get(key))} there and is "
                    f"{as_yaml(now.get(key))} now"
                    for key in sorted(changed)
                ),
                f"name another file, or remove {self.path}",
            )
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # a kill cut it short
            os.truncate(self.path, sum(map(len, lines[:-1])))  # written anew, a full disk would take all of them
            return len(lines) - 1
        return len(lines)


def check_answer_file(out: Path | None) -> list[str]:
    """List what is wrong with `--out`, one line each, before anything is read; empty if nothing is."""
    if out is None:
        return []
    if out.exists() and not (out.is_file() and _beside(out).is_file()):
        return [f"--out {out} exists already: name another file or remove it"]
    if not next(folder for folder in out.absolute().parents if folder.exists()).is_dir():
        return [f"--out {out} cannot be written: part of its path is a file"]
    return []


def fingerprint(rows: Sequence[Sequence[int]]) -> str:
    """Compute a hash that tells one list of encoded prompts from another."""
    return sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()[:16]


def weights_mark(name: str) -> str:
    """Compute a hash that changes when the weights in a folder do; empty for a hub id, which has revisions."""
    folder = local_folder(name)
    if folder is None:
        return ""
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.safetensors"))]
    return sha256(json.dumps(files).encode()).hexdigest()[:16]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.settings.json")
