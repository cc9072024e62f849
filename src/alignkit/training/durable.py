"""`DurableTrainer` can be killed at any moment and resumed to the same bits.

It goes in front of any trainer built on transformers': `class Sft(DurableTrainer, trl.SFTTrainer)`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from alignkit.errors import TrainingError
from alignkit.runs.full_disk import is_disk_full
from alignkit.training import checkpoints
from alignkit.training.watched import WatchedTrainer, at_epoch_end

logger = logging.getLogger(__name__)

_WINDOW = "window.json"  # what was summed up since the last log: a resumed run logs what an unbroken one would
_NUM_TOKENS = ("num_tokens", "eval_num_tokens")


class DurableTrainer(WatchedTrainer):
    """Saves checkpoints that are complete or absent below `args.output_dir`, and resumes from the newest sound one.

    Pushing checkpoints to the hub and hyperparameter search, which upstream has, are not supported.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.args.output_dir, "checkpoints need a folder"
        self.output_dir = Path(self.args.output_dir)
        self._resumed_from: Path | None = None
        self._had_ended = False
        self.args.restore_callback_states_from_checkpoint = True  # early stopping's patience belongs to the run
        self.add_callback(_Resume(self))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):  # upstream's own folder has the clock in its name
                callback.logging_dir = str(self.output_dir.parent / "tensorboard")
        # Here, because every process must find the same checkpoints when it looks for the newest.
        if self.is_world_process_zero():
            checkpoints.clear_leftovers(self.output_dir)
        self.accelerator.wait_for_everyone()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as upstream does; `interrupted` says afterwards whether a signal ended it.

        Args:
            resume_from_checkpoint: the path of a sound one (`checkpoints.newest_sound`); None starts from the start.
            *args: as upstream.
            **kwargs: as upstream.

        Raises:
            TrainingError: the numbers are not finite, or the disk is full.
        """
        assert resume_from_checkpoint is not True, "name it: upstream would take the newest without a look"
        if resume_from_checkpoint:
            self._resumed_from = Path(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except Exception as error:
            if is_disk_full(error):
                raise self._disk_full() from error
            raise

    # Saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # In place of upstream's, which writes straight into the folder that a resume would take.
        self.store_flos()
        step, best = self.state.global_step, self.state.best_global_step
        final = self._checkpoint_dir(step)
        partial = final.with_suffix(".partial")
        if best and (best == step or self._checkpoint_dir(best).is_dir()):
            self.state.best_model_checkpoint = str(self._checkpoint_dir(best))
        # What a signal leaves behind is there to be resumed, whatever else is kept.
        resumable = not self.args.save_only_model or self.interrupted is not None
        try:
            with self._together():
                self._write_checkpoint(partial, resumable=resumable)
            with self._together():
                if self.args.should_save:
                    checkpoints.seal(partial, resumable=resumable)
                    kept = {final, self._checkpoint_dir(best) if best else final}
                    checkpoints.rotate(self.output_dir, limit=self.args.save_total_limit, newest=final, keep=kept)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _write_checkpoint(self, folder: Path, *, resumable: bool) -> None:
        self.save_model(str(folder), _internal_call=True)
        if resumable:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
        window = self._window()
        if not self.args.should_save:
            return
        states: Any = self.state.stateful_callbacks
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        (folder / _WINDOW).write_text(json.dumps(window))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with own_names(self._loaded()):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            pickled = Path(output_dir or self.output_dir) / TRAINING_ARGS_NAME
            pickled.unlink()  # nobody should have to trust it; JSON has the same
            pickled.with_suffix(".json").write_text(self.args.to_json_string() + "\n")

    @contextmanager
    def _together(self) -> Iterator[None]:
        """All processes leave the block side by side, or all with an error: one that failed would be waited for."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        (failed,) = self.largest(problem is not None)
        if problem:
            raise problem
        if failed:
            raise TrainingError("no checkpoint was saved: another process says why")

    def _disk_full(self) -> TrainingError:
        model: Any = self.model
        weights = [p for p in model.parameters() if p.requires_grad or not hasattr(model, "peft_config")]
        states = self.optimizer.state.values() if self.optimizer else []
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in weights + moments)
        free = shutil.disk_usage(self.output_dir).free
        limited = " (so a quota or a file size limit is in force)" if free > needed else ""
        whole = checkpoints.checkpoints(self.output_dir)
        way_out = f"{whole[-1].name} is intact: free space and go on with resume=true" if whole else "free space"
        return TrainingError(
            f"the disk that holds {self.output_dir} is full: a checkpoint needs about {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free{limited}; {way_out}"
        )

    # Resuming

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        # Saved when training had reached its end: upstream would take one more step each time that is resumed.
        self._had_ended = self.control.should_training_stop
        self.args.eval_on_start = self._evaluation_is_missing()  # that of the run's start was made then
        best = self.state.best_global_step
        if best and self._checkpoint_dir(best).is_dir():  # its path may have been another, before the run was moved
            self.state.best_model_checkpoint = str(self._checkpoint_dir(best))

    def _evaluation_is_missing(self) -> bool:
        """Whether the checkpoint was saved before the evaluation at its epoch's end, as those of version 0.1 were."""
        due = self.args.eval_strategy == IntervalStrategy.EPOCH and self.args.eval_delay <= float(self.state.epoch or 0)
        evaluated = [entry["step"] for entry in self.state.log_history if any(key.startswith("eval_") for key in entry)]
        return due and at_epoch_end(self.state) and self.state.global_step not in evaluated

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._had_ended:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]  # transformers does not annotate it

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if problem := checkpoints.damage(best):
            raise TrainingError(f"the best checkpoint, {best}, cannot be trusted: {problem}")
        super()._load_best_model()

    def _loaded(self) -> Any:
        """The model that a checkpoint's weights go into."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Upstream warns of weights that a checkpoint has not got, and goes on with those of the start.

        Raises:
            TrainingError: one of them is not another name of a weight that was loaded.
        """
        model = self._loaded()
        missing = set(load_result.missing_keys)
        held = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
        loaded = {id(tensor) for name, tensor in held.items() if name not in missing}
        lost = [name for name in missing if name in held and id(held[name]) not in loaded]
        if problems := sorted([*lost, *load_result.unexpected_keys]):
            raise TrainingError(f"the checkpoint's weights are not those of this model: {', '.join(problems[:5])}")

    def _window(self) -> dict[str, Any]:
        """What was summed up since the last log, over all processes (all must call this)."""
        counts = self.meter.counts.to(self.accelerator.device)
        return {
            "losses": self.accelerator.gather(self._tr_loss[None]).tolist(),
            "logged_at": self._globalstep_last_logged,
            "counts": self.accelerator.gather(counts[None]).sum(0).tolist(),
            "metrics": dict(self._upstream_metrics()),
        }

    def restore_window(self) -> None:
        """Go on measuring where the checkpoint was."""
        if self._resumed_from is None:
            return
        window = self.resumed_window()
        losses = window["losses"]
        if len(losses) != self.args.world_size:
            logger.warning(
                "saved by %d processes and resumed by %d: right, but no longer bit for bit an unbroken run",
                len(losses),
                self.args.world_size,
            )
        loss = losses[self.args.process_index % len(losses)]
        self._tr_loss += loss
        self._total_loss_scalar -= loss  # what train() returns is the mean over this session's steps
        self._globalstep_last_logged = window["logged_at"]
        self._upstream_metrics().update(window["metrics"])
        self._restore_num_tokens()
        if self.accelerator.is_main_process:
            self.meter.restore(torch.tensor(window["counts"]))

    def resumed_window(self) -> dict[str, Any]:
        """Read what the checkpoint that this run goes on from keeps of the time since the last log."""
        assert self._resumed_from is not None
        window: dict[str, Any] = json.loads((self._resumed_from / _WINDOW).read_text())
        return window

    def _restore_num_tokens(self) -> None:
        """TRL's trainers log how many tokens they have seen, and begin again at zero."""
        if hasattr(self, "_total_train_tokens"):
            logged = [entry[key] for entry in self.state.log_history for key in _NUM_TOKENS if key in entry]
            self._total_train_tokens = int(max(logged + self._upstream_metrics().get("num_tokens", []), default=0))

    def _upstream_metrics(self) -> dict[str, list[float]]:
        """What TRL's trainers average at the next log; transformers' own has no such thing."""
        metrics: dict[str, list[float]] = self._metrics["train"] if hasattr(self, "_metrics") else {}
        return metrics

    def _checkpoint_dir(self, step: int) -> Path:
        return self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{step}"


class _Resume(TrainerCallback):
    def __init__(self, trainer: DurableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.restore_window()  # the first moment after upstream has set its sums to zero


@contextmanager
def own_names(model: Any) -> Iterator[None]:
    """Save the weights by the names that they have in memory.

    Upstream saves those of some architectures (a mixture's experts, for one) as they were published, and resumes
    without turning them back.
    """
    if not isinstance(model, PreTrainedModel):
        yield
        return
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]  # of this one object: upstream's `_save` passes no options on
    try:
        yield
    finally:
        del model.save_pretrained
