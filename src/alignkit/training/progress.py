"""One progress bar for a training run: steps, loss, tokens per second, time left; plain lines where nobody watches."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


# Of the many numbers of an update of PPO and of its evaluations, those that a line has room for.
_SHOWN = {
    "objective/score": "score",
    "objective/kl": "KL",
    "rollout/length": "length",
    "objective/entropy": "entropy",
    "group/flat_fraction": "flat groups",
    "engine/mismatch": "mismatch",
    "eval_score": "held-out score",
    "eval_score_se": "±",
    "eval_kl": "KL",
    "eval_length": "length",
}


class ProgressBar(TrainerCallback):
    """Takes the place of upstream's progress bar and of its printed dictionaries; only the first process shows it."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began = (0.0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = (time.monotonic(), state.global_step)
        console = Console(stderr=True)
        if not state.is_world_process_zero or args.disable_tqdm or not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
        self._bar.start()
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, numbers="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar:
            self._bar.update(self._task, completed=state.global_step, description="training")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar:
            self._bar.update(self._task, description="evaluating")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = _numbers(logs or {})
        if not state.is_world_process_zero or not numbers:
            return
        if self._bar and "loss" in (logs or {}):  # an update of PPO has no such key: minutes long, it gets its line
            self._bar.update(self._task, numbers=numbers)
        elif self._bar:
            self._bar.console.print(f"step {state.global_step}: {numbers}", highlight=False)
        else:
            logger.info("step %d/%d  %s%s", state.global_step, state.max_steps, numbers, self._time_left(state))

    def stop(self) -> None:
        """Give the terminal back; training may have ended in an error, so no event of upstream's can be relied on."""
        if self._bar:
            self._bar.update(self._task, description="training")
            self._bar.stop()
            self._bar = None

    def _time_left(self, state: TrainerState) -> str:
        began, first_step = self._began
        if not first_step < state.global_step < state.max_steps:
            return ""
        seconds_a_step = (time.monotonic() - began) / (state.global_step - first_step)
        return f"  {timedelta(seconds=round(seconds_a_step * (state.max_steps - state.global_step)))} left"


def _numbers(logs: dict[str, Any]) -> str:
    words = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in logs.items() if key.endswith("loss")]
    words += [f"{name} {logs[key]:.4g}" for key, name in _SHOWN.items() if key in logs]
    if "tokens_per_second" in logs:
        words.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(words) if "train_runtime" not in logs else ""
