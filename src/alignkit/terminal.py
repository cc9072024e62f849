"""What a model says, or a data file holds, on a terminal: shown, never obeyed."""

from __future__ import annotations

import re

# C0 and C1 controls but newline and tab, and what turns the direction of the text around it
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with control characters written out (`\x1b`), which could move, recolour or retitle the terminal."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def brief(text: str, most: int) -> str:
    """The same on one line, white space as single blanks, cut at `most` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"
