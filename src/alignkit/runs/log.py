"""Who hears what: our own words go to the terminal, everything goes to the run's log file."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.runs.console import SafeConsole
from alignkit.terminal import Lines, in_a_line

TERMINAL = SafeConsole()
ASIDE = SafeConsole(stderr=True)  # of a command whose standard output is its result
_UPSTREAM = ("transformers", "datasets", "trl", "peft", "accelerate", "huggingface_hub")
_MOST_HELD_BACK = 10_000  # records before the run directory may be written to


def is_main_process() -> bool:
    """Tell whether this process speaks and writes; the launcher's environment says so before torch can."""
    return int(os.environ.get("RANK", "0")) == 0


class _Terminal(logging.Handler):
    def __init__(self, console: SafeConsole) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        args = tuple(map(_safe, record.args)) if isinstance(record.args, tuple) else record.args
        safe = logging.makeLogRecord(record.__dict__ | {"args": args})
        self._console.print(self.format(safe), markup=False, highlight=False)


def _safe(value: Any) -> Any:
    """A value that cannot begin a line of its own, unless it is of ours."""
    return value if isinstance(value, (int, float, Lines)) else in_a_line(str(value))


class _File(logging.FileHandler):
    """Silent where the disk is full: that is told in words by whoever needs the room."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class RunLog:
    """Holds records back until there is a file for them."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.held_back = MemoryHandler(_MOST_HELD_BACK, flushLevel=logging.CRITICAL + 1, flushOnClose=False)

    def open(self, path: Path) -> None:
        """Write what was held back, and from now on everything, to the end of this file."""
        if not is_main_process():
            return
        self.path = path
        file = _File(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(file)
        self.held_back.setTarget(file)
        self.held_back.flush()
        root.removeHandler(self.held_back)


@contextmanager
def run_log(console: SafeConsole = TERMINAL) -> Iterator[RunLog]:
    """Quiet upstream on the terminal for as long as a stage works, and keep what it says for the log.

    Args:
        console: where our own words go.

    Yields:
        The log; `open` gives it its file.
    """
    import datasets
    import transformers
    from huggingface_hub.utils import disable_progress_bars

    loggers = [logging.getLogger(name) for name in ("", "alignkit", *_UPSTREAM)]
    root, ours, *_ = loggers
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers.clear()
        logger.setLevel(logging.INFO)
        logger.propagate = True
    log = RunLog()
    root.addHandler(log.held_back)
    if is_main_process():
        ours.addHandler(_Terminal(console))
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    disable_progress_bars()
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            yield log
    except Exception as error:
        if log.path is not None and not isinstance(error, AlignkitError):
            root.exception("internal error")
            error.add_note(str(log.path))  # where the command line says the traceback is
        raise
    finally:
        logging.captureWarnings(False)
        for handler in set(root.handlers) - set(before[0][1]):
            handler.close()
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
