"""`WatchedTrainer` looks before each optimizer step: are the numbers finite, and has a signal asked to stop?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from alignkit.data.batches.batching import FILLER
from alignkit.errors import TrainingError
from alignkit.training.metrics import TokenMeter
from alignkit.training.progress import ProgressBar
from alignkit.training.signals import StopRequest, name_of, stop_requests

logger = logging.getLogger(__name__)

_SHOWN_ROWS = 8


class WatchedTrainer(Trainer):
    """Stops before a step that would spoil the model, and after the step in which a signal came.

    Batches carry `row_index`, a LongTensor [rows of the batch] into `row_sources`; it never reaches the model.

    Args:
        row_sources: where each row of the training set came from, such as `train.json:12`.

    Attributes:
        interrupted: the signal that ended training early, after a checkpoint was written; None where none did.
        meter: counts the tokens that were trained on.
    """

    def __init__(self, *args: Any, row_sources: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.row_sources = row_sources
        self.interrupted: int | None = None
        self.meter = TokenMeter()
        self._stop_request = StopRequest()
        self._batches: list[tuple[Tensor, list[int]]] = []  # (loss, rows) of each since the last optimizer step
        self._bar = ProgressBar()
        self.args.logging_nan_inf_filter = False  # upstream's default logs 0.0 in place of NaN for ever
        self.pop_callback(PrinterCallback)
        self.pop_callback(DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(self._bar)
        self.add_callback(_Watch(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as upstream does; `interrupted` says afterwards whether a signal ended it.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        try:
            with stop_requests(announce=self.is_world_process_zero()) as self._stop_request:
                return super().train(*args, **kwargs)
        finally:
            self._bar.stop()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        rows = inputs.pop("row_index").tolist()
        if rows != [FILLER]:
            self.meter.add(inputs, num_rows=len(rows))
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._batches.append((loss, rows))
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("row_index", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs.update(self.meter.report(self.accelerator))
        super().log(logs, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        kept: Any = self._signature_columns
        self._signature_columns = list(dict.fromkeys([*kept, "row_index"]))  # type: ignore[assignment]  # upstream declares None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The last thing upstream asks before `optimizer.step`."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]  # upstream's is bare
        batches, self._batches = self._batches, []
        bad = [not bool(loss.isfinite().all()) for loss, _ in batches]
        # float16 overflows on purpose while its scale is found; the scaler skips those steps by itself
        bad_norm = self.accelerator.scaler is None and not bool(torch.as_tensor(norm).isfinite().all())
        # One exchange for both questions: every process must stop in the same step, or the others wait for ever.
        stop, spoilt = self.largest(self._stop_request.number, any(bad) or bad_norm)
        if spoilt:
            raise self._spoilt(batches, bad)
        self.interrupted = stop or None
        return norm

    def asked_too_late(self) -> int:
        """Return the signal that came after the last step had been decided; 0 if none did (all must call this)."""
        (number,) = self.largest(self._stop_request.number)
        return number

    def _spoilt(self, batches: list[tuple[Tensor, list[int]]], bad: list[bool]) -> TrainingError:
        of_bad_loss = self._gathered(
            [row for (_, rows), is_bad in zip(batches, bad, strict=True) if is_bad for row in rows]
        )
        found = of_bad_loss or self._gathered([row for _, rows in batches for row in rows])
        names = [self.row_sources[row] for row in found if 0 <= row < len(self.row_sources)]
        more = len(names) - _SHOWN_ROWS
        shown = ", ".join(names[:_SHOWN_ROWS]) + (f" and {more} more" if more > 0 else "")
        what, rate = "loss" if of_bad_loss else "gradient", self._get_learning_rate()
        return TrainingError(
            f"step {self.state.global_step + 1}: the {what} is not finite, at a learning rate of {rate:.3g}, on "
            f"{shown or 'rows unknown'}. The step was not taken and nothing of it is saved; look at these rows, or try "
            "a lower train.learning_rate"
        )

    def _gathered(self, rows: list[int]) -> list[int]:
        everyones: list[int] = gather_object(rows) if self.accelerator.num_processes > 1 else rows
        return everyones

    def largest(self, *numbers: int) -> list[int]:
        """Find the largest of each number over all processes (all must call this)."""
        if self.accelerator.num_processes == 1:
            return [int(number) for number in numbers]
        mine = torch.tensor([[int(number) for number in numbers]], device=self.accelerator.device)
        largest: list[int] = self.accelerator.gather(mine).amax(0).tolist()
        return largest


class _Watch(TrainerCallback):
    """What the trainer does at upstream's events, after its other callbacks have decided."""

    def __init__(self, trainer: WatchedTrainer) -> None:
        self.trainer = trainer
        self._save_is_due = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.meter.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.trainer.meter.stop()
        if state.global_step >= state.max_steps and args.eval_strategy == "steps":
            control.should_evaluate = True  # the result's own held-out loss, wherever the interval ends
        if self.trainer.interrupted:
            control.should_save = True
        if control.should_save and at_epoch_end(state):
            # The checkpoint comes after what the epoch's end logs and evaluates: a resume would not repeat that.
            control.should_save, self._save_is_due = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._save_is_due:
            control.should_save, self._save_is_due = True, False
        elif self.trainer.interrupted:  # upstream ends an interrupted epoch as if it were whole
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.trainer.interrupted:
            logger.info("%s: stopped after step %d", name_of(self.trainer.interrupted), state.global_step)
            control.should_training_stop = True  # only now, so that the checkpoint does not say that training had ended


def at_epoch_end(state: TrainerState) -> bool:
    """Tell whether an epoch, or all of the training, ends with the step just taken."""
    return float(state.epoch).is_integer() or state.global_step >= state.max_steps
