"""The folders that a command was given to read: whether they are still there when it ends in an error.

Who only reads a run holds no lock on it, so that another command may remove it meanwhile.
"""

from __future__ import annotations

from pathlib import Path

_taken: dict[Path, str] = {}


def begin() -> None:
    """Forget what earlier commands of this process were given."""
    _taken.clear()


def take(folder: Path) -> None:
    """Remember a folder that is read from now on; one that is not there is somebody else's to tell."""
    if folder.is_dir():
        _taken[folder.resolve()] = str(folder)


def give_back(below: Path) -> None:
    """Forget the folders that lie in one of this process's own, which it removes."""
    for place in [place for place in _taken if place.is_relative_to(below.resolve())]:
        del _taken[place]


def lost() -> list[str]:
    """Say which folders are no more, a line each: other errors may come of that."""
    return [f"{name} was removed or moved while it was read" for place, name in _taken.items() if not place.is_dir()]
