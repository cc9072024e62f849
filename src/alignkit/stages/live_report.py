"""The page of a run, written while it goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.pages.report import keep_report

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
