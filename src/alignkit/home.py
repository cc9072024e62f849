"""The home folder that a leading `~` of a name stands for."""

from __future__ import annotations

import os


def expand_home(path: str) -> str:
    """Write the home folder for a leading `~` or `~user`; a user who is not known stays as typed."""
    return os.path.expanduser(path)  # noqa: PTH111  # Path.expanduser drops a leading "./" and raises for an unknown user
