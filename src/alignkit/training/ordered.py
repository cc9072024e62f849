"""`OrderedTrainer` takes its rows in our order; what alignkit trains with TRL's trainers stands on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset, Sampler

from alignkit.data.batches.batching import EpochOrder
from alignkit.training.durable import DurableTrainer

Order = Callable[[Any], Sampler[int]]


class OrderedTrainer(DurableTrainer):
    """Goes in front of one of TRL's trainers, as `DurableTrainer` does.

    Args:
        train_order: from the training rows, their order in each epoch.
        eval_order: from held-out rows, the order they are scored in.
        **rest: as upstream and `DurableTrainer` take them.
    """

    def __init__(self, *, train_order: Order, eval_order: Order, **rest: Any) -> None:
        self._train_order, self._eval_order = train_order, eval_order
        self._group = 0  # of the training rows' order: a run goes on in the order it began in
        super().__init__(**rest)

    def num_parameters(self) -> tuple[int, int]:
        """Count all weights, and those that train."""
        weights = list(self.accelerator.unwrap_model(self.model).parameters())
        return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)

    def _send_telemetry(self) -> None:
        pass  # in TRL: what is trained here is told to nobody

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        order = self._train_order(train_dataset if train_dataset is not None else self.train_dataset)
        if isinstance(order, EpochOrder):
            if self._resumed_from is not None:
                # Version 0.1 did not note it: a device's batch, and all rows where they were not shuffled.
                before = self.args.per_device_train_batch_size if order.shuffle else len(order)
                order.group = order.group and self.resumed_window().get("group", before)
            self._group = order.group
        return order

    def _window(self) -> dict[str, Any]:
        return {**super()._window(), "group": self._group}

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int]:
        return self._eval_order(eval_dataset)
