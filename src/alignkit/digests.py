"""SHA-256 of files. What was read once is remembered in the user's cache, so that 100 GB are not read twice.

A file is the same as before if its path, inode, size and time of change are. Each is remembered in a small file of its
own, so that processes do not wait for each other.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

_AT_ONCE = 2**23  # bytes
_LONG = 2**30  # bytes: reading them takes a second or more, which is said
_SETTLED = 10**8  # ns: a clock that ticks more rarely than that could hide another change


def digests(files: Sequence[Path], *, read_again: bool = False) -> dict[Path, str]:
    """Compute the SHA-256 of files, several at a time; a bar is shown where that takes long.

    Args:
        files: that are there.
        read_again: read what is remembered, too.
    """
    found = {} if read_again else {file: known for file in files if (known := _remembered(file))}
    unread = [file for file in files if file not in found]
    with ThreadPoolExecutor() as threads:  # hashing releases the interpreter's lock
        bar = _Bar(sum(file.stat().st_size for file in unread))
        with bar:
            for file, digest in zip(unread, threads.map(lambda file: _digest(file, bar.add), unread), strict=True):
                found[file] = digest
    return {file: found[file] for file in files}


def _digest(file: Path, on_bytes: Callable[[int], None]) -> str:
    place, digest = _place(file), hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_AT_ONCE):
            digest.update(chunk)
            on_bytes(len(chunk))
    if time.time_ns() - file.stat().st_mtime_ns > _SETTLED and place == _place(file):
        with suppress(OSError):  # a cache that cannot be written is none
            place.parent.mkdir(parents=True, exist_ok=True)
            aside = place.with_suffix(f".{os.getpid()}")
            aside.write_text(digest.hexdigest())
            aside.replace(place)
    return digest.hexdigest()


def _remembered(file: Path) -> str:
    try:
        known = _place(file).read_text()
    except (OSError, ValueError):
        return ""
    return known if len(known) == 64 else ""


def _place(file: Path) -> Path:
    facts = file.stat()
    key = f"{file.resolve()}\n{facts.st_ino}\n{facts.st_size}\n{facts.st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "alignkit" / "digests" / hashlib.sha256(os.fsencode(key)).hexdigest()[:40]


class _Bar:
    """A progress bar on standard error, for long reads on a terminal alone."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("checking files"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=total < _LONG)
        self._task = self._progress.add_task("", total=total)

    def add(self, num_bytes: int) -> None:
        self._progress.advance(self._task, num_bytes)

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
