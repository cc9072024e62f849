"""`MeasuredTrainer` reports what a step or a set is, whatever batches and processes its rows were spread over."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from alignkit.training.ordered import OrderedTrainer

_EXTREMES = {"min_reward": min, "max_reward": max}


class MeasuredTrainer(OrderedTrainer):
    """Goes in front of TRL's trainers, which average the means of batches, the last and smaller ones like the others.

    Args:
        **rest: as `OrderedTrainer` and upstream take them.
    """

    _metrics: dict[str, dict[str, list[float]]]  # TRL's trainers have it: what the next log averages

    def __init__(self, **rest: Any) -> None:
        # Of each figure since the last log: the sum of values times weights, and that of the weights.
        self._figures: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self._held_out_loss: Tensor | None = None
        super().__init__(**rest)

    @abstractmethod
    def loss_weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Count what the loss of a batch is the mean of, a scalar."""

    def record(self, figures: Mapping[str, tuple[float, float]]) -> None:
        """Add figures of this process's batch, each with what it is the mean of (all processes must call this)."""
        sums = self._figures[self._mode()]
        for name, everyones in zip(figures, self._of_all(list(figures.values())), strict=True):
            parts = [(value, weight) for value, weight in everyones if weight]
            if parts and name in _EXTREMES:
                sums[name] = [_EXTREMES[name]([value for value, _ in parts] + sums.get(name, [])[:1]), 1.0]
            elif parts:
                total, weights = sums.get(name, [0.0, 0.0])
                added = sum(value * weight for value, weight in parts), sum(weight for _, weight in parts)
                sums[name] = [total + added[0], weights + added[1]]

    def _of_all(self, pairs: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
        """Gather pairs of numbers: those of every process for each of this one's."""
        if self.accelerator.num_processes == 1:
            return [[pair] for pair in pairs]
        mine = torch.tensor(pairs, dtype=torch.float64, device=self.accelerator.device)
        everyones: list[list[tuple[float, float]]] = self.accelerator.gather(mine[None]).transpose(0, 1).tolist()
        return everyones

    def _mode(self) -> str:
        model: Any = self.model
        return "train" if model.training else "eval"

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mode = self._mode()
        self._metrics[mode].update({name: [total / weights] for name, (total, weights) in self._figures[mode].items()})
        self._figures[mode].clear()
        super().log(logs, *args, **kwargs)

    def _window(self) -> dict[str, Any]:
        return {**super()._window(), "figures": dict(self._figures["train"])}

    def restore_window(self) -> None:
        super().restore_window()
        if self._resumed_from is not None:
            self._figures["train"].update(self.resumed_window().get("figures", {}))  # version 0.1 had means of batches

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        weight = self.loss_weight(inputs).double()
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        assert self._held_out_loss is not None
        self._held_out_loss += torch.stack([loss.double() * weight, weight])
        return loss, None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run upstream's loop, and report the loss per supervised token, or per pair, of the whole set.

        Upstream averages the batches' means, so that its figure depends on which rows happen to share a batch.
        """
        # MPS has no float64; elsewhere a long evaluation would lose digits without it
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        self._held_out_loss = torch.zeros(2, dtype=dtype, device=self.args.device)
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        total, weight = self.accelerator.reduce(self._held_out_loss, reduction="sum").tolist()
        assert output.metrics is not None
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(weight, 1)
        return output
