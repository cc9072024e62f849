"""Completions kept on disk until a checkpoint has what was learned from them.

What a server draws depends on what else it computes at the time, in rounding. So a run that is resumed takes the
completions that it was given before it stopped, and computes what it computed then.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from alignkit.sampling.generate import Completion


class KeptCompletions:
    """Completions by what they were asked with, in a file of JSON lines.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = dict(_read(path))

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Completion | None:
        return self._found.get(key)

    def add(self, completions: dict[str, Completion]) -> None:
        """Keep further ones."""
        self._found |= completions
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for key, completion in completions.items():
                file.write(json.dumps({"key": key, **asdict(completion)}) + "\n")

    def clear(self) -> None:
        """Forget all of them: a checkpoint has what was learned."""
        self._found = {}
        self.path.unlink(missing_ok=True)


def _read(path: Path) -> list[tuple[str, Completion]]:
    """What is kept; a last line that a kill cut short is not."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            found.append((row.pop("key"), Completion(**row)))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return found
