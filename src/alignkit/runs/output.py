"""Files that a command writes: held for it alone from before its work to their last line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from alignkit.errors import OutputError, check_writable
from alignkit.runs.lock import hold


@contextmanager
def outputs(**paths: Path | None) -> Iterator[None]:
    """Hold the files that the block is going to write.

    Args:
        **paths: by the name of the option that names the file; None is no file.

    Raises:
        ConfigError: a file of this name cannot be.
        RunError: another process is writing it, or its folder cannot be written.
    """
    with ExitStack() as held:
        for name, path in paths.items():
            check_writable(f"--{name}", path)
            if path is not None and (path.is_file() or not path.exists()):  # a device is nobody's
                held.enter_context(hold(path, path.with_name(f".{path.name}.lock")))
        yield


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: one that was there keeps what it held where the disk takes no more.

    Yields:
        What the block writes, which then takes the place of the file: a path beside it, or a device itself.

    Raises:
        OutputError: the disk is full or has become read-only, or the file may not be written.
    """
    whole = path.resolve()  # not the link to it
    aside = whole if whole.exists() and not whole.is_file() else whole.with_name(f".partial-{whole.name}")
    try:
        if whole.is_file():
            whole.open("ab").close()  # one that may not be written is not replaced either
        yield aside
        if aside != whole:
            aside.replace(whole)
    except OSError as error:
        left = "it is as it was" if whole.exists() else "nothing is left of it"
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; {left}") from error
    finally:
        if aside != whole:
            with suppress(OSError):
                aside.unlink()
