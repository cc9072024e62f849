"""What may go wrong between a text and whoever reads it: control characters, and a reader that is gone."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

# C0 and C1 controls but newline and tab, characters that turn the direction of the text, and halves of characters
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What begins a new line, for a terminal or for `str.splitlines`
_LINE_ENDS = re.compile("[\n\x85\u2028\u2029]")


def printable(text: str) -> str:
    r"""Write out control characters (`\x1b`), which could move the cursor, or color or retitle the terminal."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


def in_a_line(text: str) -> str:
    r"""Write out control characters and line ends (`\n`): what came from outside cannot begin a line of ours."""
    return _LINE_ENDS.sub(lambda found: repr(found[0])[1:-1], printable(text))


def plain_number(value: float) -> str:
    """Write a figure with four decimals, or with three significant digits where those would hide it: 1e-05."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3g}"


def one_line(text: str, max_chars: int) -> str:
    """Put a printable text on one line: each white space is one blank; cut it at `max_chars` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= max_chars else line[: max_chars - 1] + "…"


def print_json_lines(rows: Iterable[Any]) -> None:
    """Print an object a line to standard output, in ASCII where that is not UTF-8: JSON has no other encoding."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "").replace("_", "") == "utf8"
    for row in rows:
        sys.stdout.write(json.dumps(row, ensure_ascii=not is_utf8) + "\n")


@contextmanager
def for_the_result_alone() -> Iterator[None]:
    """Keep standard output for what is printed after the block.

    What is written to it in the block goes to standard error: also by libraries in C and by child processes.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class LineFormatter(logging.Formatter):
    """Formats a record as one printable line."""

    def format(self, record: logging.LogRecord) -> str:
        return in_a_line(super().format(record))


class Lines(str):
    """A text of ours that has several lines: it may be logged as it is."""


class SteadyStream:
    """A standard stream whose trouble is told to `on_lost`, once, in place of whoever happens to write to it.

    A character that its encoding lacks is written out. Once it is lost, what is written to it goes nowhere.

    Args:
        stream: the stream.
        on_lost: called with the error; it may raise another one.
    """

    def __init__(self, stream: Any, on_lost: Callable[[OSError], None]) -> None:
        self.stream, self.on_lost, self.is_lost = stream, on_lost, False

    def write(self, text: str) -> int:
        if self.is_lost:
            return len(text)
        try:
            self.stream.write(text)
        except UnicodeEncodeError as error:
            self.stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self.is_lost:
            return
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.is_lost = True
        with suppress(OSError, ValueError):  # what it still holds is written when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        self.on_lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _open_closed_streams() -> None:
    """Give those that were closed (`>&-`) a descriptor that takes nothing, lest a file is opened in their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # A descriptor has no path to be opened by, and no block closes what stays open until the process ends.
            setattr(sys, name, open(os.open(os.devnull, os.O_RDONLY), mode))  # noqa: SIM115, PTH123


@contextmanager
def steady_streams(on_lost: Callable[[str, OSError], None]) -> Iterator[None]:
    """Put standard output and standard error behind a `SteadyStream` while the block runs.

    Args:
        on_lost: called with the name of the one that takes no more, and why.
    """
    _open_closed_streams()
    before: tuple[Any, Any] = sys.stdout, sys.stderr
    out, err = (stream.stream if isinstance(stream, SteadyStream) else stream for stream in before)
    sys.stdout = SteadyStream(out, lambda error: on_lost("standard output", error))
    sys.stderr = SteadyStream(err, lambda error: on_lost("standard error", error))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
