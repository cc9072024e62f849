"""The page of a run, written while it goes on and when it has ended."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.pages.report import REPORT, write_report
from alignkit.runs.log import is_main_process

logger = logging.getLogger(__name__)

_SECONDS = 20.0  # between two writings: as often as the page loads itself again
_SHARE = 0.01  # of the time of a training, at most, goes into its page


class LiveReport(TrainerCallback):
    """Writes the page now and then, when metrics were logged.

    Args:
        run_dir: of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._next = 0.0

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        began = time.monotonic()
        if state.is_world_process_zero and began >= self._next:
            keep_report(self.run_dir)
            took = time.monotonic() - began
            self._next = began + max(_SECONDS, took / _SHARE)


def keep_report(run_dir: Path) -> None:
    """Write the page of a run; what hinders that is told, and hinders nothing else."""
    if not is_main_process():
        return
    try:
        write_report(run_dir)
    except Exception as error:  # a training of days must not end for its page
        logger.warning("%s could not be written: %s: %s", run_dir / REPORT, type(error).__name__, error)
