"""Text of a model or a data file, made safe for a terminal: control characters are shown, not obeyed."""

from __future__ import annotations

import re

# C0 and C1 controls but newline and tab, and characters that turn the direction of the text
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Write out control characters (`\x1b`), which could move the cursor, or color or retitle the terminal."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str, max_chars: int) -> str:
    """Put a printable text on one line: each white space is one blank; cut it at `max_chars` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"
