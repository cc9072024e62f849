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
def writing(path: Path) -> Iterator[None]:
    """Write a file, or leave none where its disk takes no more.

    Raises:
        OutputError: the disk is full, or has become read-only.
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; nothing is left of it") from error
