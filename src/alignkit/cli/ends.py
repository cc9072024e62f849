"""How a command ends: its exit status, one line to standard error for each mistake, a file for a bug of ours."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable

import typer

from alignkit.errors import AlignkitError, MemoryShortage, OutputError, StopSignal


def run_to_its_end(command: Callable[[], object]) -> None:
    """Run a command; the exit status is 0, 2 for the user's mistake, 1 for a bug of ours."""
    from alignkit.runs import taken
    from alignkit.terminal import LineFormatter, steady_streams
    from alignkit.training.signals import name_of, stops_raised

    taken.begin()
    if logging.lastResort is not None:  # what is said where no run has set up its log
        logging.lastResort.setFormatter(LineFormatter("alignkit: %(message)s"))
    try:
        with steady_streams(_end_if_output_is_lost), stops_raised():
            try:
                command()
            except SystemExit as end:
                if end.code == 128 + signal.SIGINT:  # which typer makes of Ctrl-C, without a word
                    tell("stopped by SIGINT")
                raise
            finally:
                sys.stdout.flush()
    except StopSignal as stop:
        tell(f"stopped by {name_of(stop.number)}")
        sys.exit(128 + stop.number)
    except AlignkitError as error:
        # Once, not once a process, but for what only one of them knows.
        is_ours = os.environ.get("RANK", "0") == "0" or isinstance(error, MemoryShortage)
        lost = taken.lost() if error.exit_status == 2 else []  # else it is no mistake that could come of that
        for line in [*lost, *error.shown] if is_ours else ():
            tell(line)
        sys.exit(error.exit_status)
    except Exception as error:
        if os.environ.get("ALIGNKIT_DEBUG"):
            raise
        shortage = _shortage(error)
        if not shortage and (lost := taken.lost()):
            for line in lost:
                tell(line)
            sys.exit(2)
        tell(shortage or f"internal error: {_brief(error)}; the traceback is in {_traceback_file(error)}")
        sys.exit(1)


def tell(line: str) -> None:
    """Print one line to standard error, whatever is in it and whoever still reads."""
    from alignkit.terminal import in_a_line

    with contextlib.suppress(OSError):
        typer.echo(f"alignkit: {in_a_line(line)}", err=True)


def _end_if_output_is_lost(name: str, error: OSError) -> None:
    """End a command that nobody reads any more; results are printed to standard output alone."""
    if name != "standard output":
        return
    if isinstance(error, BrokenPipeError):
        sys.exit(128 + signal.SIGPIPE)  # as if it had not been caught: `| head -1` has what it wanted
    raise OutputError(f"{name} cannot be written: {error.strerror}") from error


def _shortage(error: Exception) -> str | None:
    """Say what the machine has too little of, where that ended a command that has no words of its own for it."""
    from alignkit.models.memory import is_out_of_memory
    from alignkit.runs.full_disk import disk_trouble

    if is_out_of_memory(error):
        return "out of memory: lower batch_size, data.max_length or sampling.max_new_tokens, or take a smaller model"
    trouble = disk_trouble(error)
    return trouble and f"{trouble}: free space there, or write elsewhere (TMPDIR is the folder of temporary files)"


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _traceback_file(error: Exception) -> str:
    """Where the traceback is: the run's own log, or a file made for it."""
    import tempfile
    import traceback

    if notes := getattr(error, "__notes__", []):
        return str(notes[-1])
    with tempfile.NamedTemporaryFile("w", prefix="alignkit-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    return file.name
