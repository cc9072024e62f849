"""What transformers' trainer asks of a trainer whose model is a policy with its value function."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from alignkit.errors import TrainingError
from alignkit.ppo.policy import Policy
from alignkit.ppo.sharded import (
    gather_optimizer,
    gather_weights,
    is_sharded,
    load_optimizer,
    open_policy,
    prepare_policy,
    read_weights,
)
from alignkit.training import checkpoints
from alignkit.training.durable import DurableTrainer, own_names

STATE = "ppo_state.json"
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # as upstream calls them


class PolicyTrainer(DurableTrainer):
    """Counts updates: its data set is their numbers, the same on every process.

    Args:
        policy: model, value function and reference.
        num_updates: length of training.
        value_learning_rate: of the value function; None takes that of the rest.
        row_sources: of each prompt that is learned on, such as `file:N`.
        eval_dataset: what `evaluate` of a subclass completes; None where nothing is held out.
        args: upstream's arguments, whose steps are updates.
        tokenizer: of the policy.
        callbacks: as upstream.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        num_updates: int,
        value_learning_rate: float | None,
        row_sources: Sequence[str],
        eval_dataset: list[Any] | None,
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(
            model=policy,
            args=args,
            processing_class=tokenizer,
            train_dataset=list(range(num_updates)),
            eval_dataset=eval_dataset,
            data_collator=lambda numbers: {"update": numbers[0]},
            row_sources=row_sources,
            callbacks=list(callbacks),
        )
        self.policy, self.value_learning_rate = policy, value_learning_rate
        self._when_placed: Callable[[], None] = lambda: None

    def when_placed(self, function: Callable[[], None]) -> None:
        """Call a function that asks the policy as it starts: now, or where FSDP is to shard it, once that is done."""
        if self.is_fsdp_enabled:
            self._when_placed = function
        else:
            function()

    def computing(self) -> AbstractContextManager[Any]:
        """Return what the policy computes in outside of its forward pass; FSDP has its own half precision."""
        context: AbstractContextManager[Any] = nullcontext() if is_sharded(self.policy) else self.accelerator.autocast()
        return context

    def state_of_run(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside weights, optimizer and schedule; plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state_of_run`."""

    def sum_of_all(self, tensor: Tensor) -> Tensor:
        """Sum over the processes (all must call this)."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum") if self.args.world_size > 1 else tensor
        return total

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load the numbers of the updates, the same on every process."""
        numbers: Any = self.train_dataset
        return DataLoader(numbers, batch_size=1, shuffle=False, collate_fn=self.data_collator)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.policy)  # type: ignore[arg-type]  # declared for a PreTrainedModel, it takes any module
            decaying = set(self.get_decay_parameter_names(self.policy))
            values = set(map(id, self.policy.value.weights()))
            groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
            for name, weight in self.policy.named_parameters():
                if weight.requires_grad:
                    decays = name in decaying and not name.startswith("value.head.")
                    groups.setdefault((id(weight) in values, decays), []).append(weight)
            rate = {"lr": self.value_learning_rate} if self.value_learning_rate is not None else {}
            self.optimizer = optimizer_class(
                [
                    {
                        "params": weights,
                        "weight_decay": self.args.weight_decay if decays else 0.0,
                        **(rate if is_value else {}),
                    }
                    for (is_value, decays), weights in sorted(groups.items())
                ],
                **arguments,
            )
        return self.optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # upstream's count knows one forward and backward pass a step

    def num_parameters(self) -> tuple[int, int]:
        """Count the weights of policy and value function: all, and those that train."""
        weights = [*self.policy.model.parameters(), *self.policy.value.parameters()]
        return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._save(output_dir)  # upstream would gather the frozen weights too

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder, weights = Path(output_dir or self.output_dir), gather_weights(self.policy)
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with own_names(self.policy.model):
            self.policy.save(folder, weights)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n")
        (folder / STATE).write_text(json.dumps(self.state_of_run()) + "\n")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.policy):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gather_optimizer(self.optimizer, is_main_process=self.is_world_process_zero())
        scheduler: Any = self.lr_scheduler
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saved = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
            load_optimizer(self.optimizer, saved)
            scheduler: Any = self.lr_scheduler
            scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepare: Any = super()._prepare_for_training
        if not self.is_fsdp_enabled:
            return prepare(max_steps, train_dataloader, resume_from_checkpoint)
        prepare_policy(self.policy, self.accelerator)
        prepared = prepare(max_steps, train_dataloader, None)
        open_policy(self.policy)
        self._when_placed()
        if resume_from_checkpoint is not None:  # only now, so that what was asked of the start is asked of it again
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_weights(Path(resume_from_checkpoint))
        self.restore(json.loads((Path(resume_from_checkpoint) / STATE).read_text()))

    def _loaded(self) -> Any:
        return self.policy.model

    def _load_weights(self, folder: Path) -> None:
        if self.policy.adapters is None and is_sharded(self.policy):
            weights: dict[str, Tensor] = {}
            for path in folder.glob("model*.safetensors"):
                weights |= read_weights(path, self.policy.model)
            self._issue_warnings_after_load(self.policy.model.load_state_dict(weights, strict=False))
        elif self.policy.adapters is None:
            super()._load_from_checkpoint(str(folder), self.policy.model)
        self.policy.load(folder)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if problem := checkpoints.damage(best):
            raise TrainingError(f"the best checkpoint, {best}, cannot be trusted: {problem}")
        self._load_weights(best)
