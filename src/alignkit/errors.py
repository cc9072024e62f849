"""What can go wrong, in the words a person reads.

Every error that the user can fix is an `AlignkitError`: the command line prints its text (no stack trace) and
exits with its `exit_status`. Anything else that escapes is a bug of ours and exits 1 with its traceback in the log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

SHOWN_PROBLEMS = 10


class AlignkitError(Exception):
    """A mistake, or several, each told in one line: setting or file:row, what is wrong, the way out.

    Args:
        *problems: one line each; at least one.
    """

    exit_status = 2

    def __init__(self, *problems: str) -> None:
        assert problems, "an error needs words"
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.shown)

    @property
    def shown(self) -> list[str]:
        """The first problems, and how many more there are."""
        shown = list(self.problems[:SHOWN_PROBLEMS])
        hidden = len(self.problems) - len(shown)
        return [*shown, f"… and {hidden} more"] if hidden else shown

    def _render_traceback_(self) -> list[str]:
        """Show a notebook the lines alone, as IPython asks for it: they say more than a stack of our functions."""
        return [f"{type(self).__name__}: {line}" for line in self.shown]


class ConfigError(AlignkitError, ValueError):
    """A setting, flag or configuration file is wrong."""


class DataError(AlignkitError, ValueError):
    """A data file, a row of it, or what is left of it after the policies, is wrong."""


class TemplateError(AlignkitError, ValueError):
    """A chat template cannot be used: missing, broken, unmarked, or it breaks one of the checks."""


class ModelError(AlignkitError, ValueError):
    """A model, adapter or tokenizer cannot be loaded or does not fit what is asked of it."""


class DamagedFile(AlignkitError, ValueError):
    """A file that a run or an earlier command wrote cannot be read any more."""


class RewardError(AlignkitError, ValueError):
    """A reward source cannot be loaded, or did not give a number."""


class RunError(AlignkitError, RuntimeError):
    """A run directory cannot be written, resumed, or would be written over."""


class TrainingError(AlignkitError, RuntimeError):
    """Training cannot go on (a loss that is not finite, a full disk); nothing bad was saved."""

    exit_status = 1


class OutputError(AlignkitError, RuntimeError):
    """A result cannot be written: its disk is full, or has become read-only."""

    exit_status = 1


class MemoryShortage(AlignkitError, RuntimeError):
    """The device or the machine has too little memory; each process tells its own."""

    exit_status = 1


class Interrupted(AlignkitError, RuntimeError):
    """A signal ended the run after a checkpoint was written.

    Args:
        signal_number: 1 for SIGHUP, 2 for Ctrl-C, 15 for SIGTERM; the exit status is 128 + this, as shells do.
        message: what was saved and how to go on.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.args = (signal_number, message)  # so that pickling rebuilds it
        self.exit_status = 128 + signal_number


class StopSignal(BaseException):
    """SIGTERM or SIGHUP, raised where no training step is there to be ended; as Ctrl-C's, it is no `Exception`.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The suggestion to append to a refusal: `; did you mean 'x'?`, or nothing where no choice is close."""
    return "".join(f"; did you mean '{close}'?" for close in close_to(word, choices))


def did_you_mean_path(path: Path, beside: Iterable[Path]) -> str:
    """The suggestion of the one beside a path that is not there whose name is close, as it is to be typed."""
    by_name = {item.name: item for item in beside}
    return "".join(f"; did you mean '{by_name[name]}'?" for name in close_to(path.name, by_name))


def close_to(word: str, choices: Iterable[str]) -> list[str]:
    """The choice that is spelled most alike, if one is close."""
    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)


def as_yaml(value: Any) -> str:
    """Write the value of a setting as YAML has it, where Python's True and None are true and null."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    return str(value) if isinstance(value, Enum) else repr(value)


def check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written, before the work whose result it is for.

    Raises:
        ConfigError: it is a folder, or its path leads through a file.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file in it")
    if not next(parent for parent in path.absolute().parents if parent.exists()).is_dir():
        raise ConfigError(f"{option} {path} cannot be written: part of its path is a file")
