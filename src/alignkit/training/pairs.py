"""A causal model on a batch of pairs: what it is fed, and a trainer that measures pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.data.batches.pair_batching import NOTHING, PairCollator, visible
from alignkit.training.ordered import OrderedTrainer


def model_inputs(batch: Mapping[str, Tensor], *, attention: str, shared_prompt: bool) -> dict[str, Any]:
    """Return what a model is called with for a batch of `PairCollator`.

    Args:
        batch: of pairs.
        attention: the model's attention implementation.
        shared_prompt: as the collator laid it.
    """
    parts = batch["parts"]
    if not shared_prompt:
        mask = (parts != NOTHING).long()
    elif attention == "eager":  # adds the mask to its scores
        seen = visible(parts)
        mask = torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, torch.finfo(torch.float32).min)
    else:
        mask = visible(parts)
    return {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "attention_mask": mask,
        "use_cache": False,
    }


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what a module is called with."""
    caught: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        yield caught
    finally:
        handle.remove()


class PairTrainer(OrderedTrainer):
    """Goes in front of TRL's reward and DPO trainers: encoded pairs stay as they are, held-out figures are per pair."""

    data_collator: PairCollator
    _metrics: dict[str, dict[str, list[float]]]  # TRL's trainers have it: what the next log averages

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def model_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what the model is called with for a batch of this trainer's collator."""
        attention = self.accelerator.unwrap_model(self.model).config._attn_implementation
        return model_inputs(batch, attention=attention, shared_prompt=self.data_collator.shared_prompt)

    def num_pairs(self, batch: Mapping[str, Tensor]) -> int:
        num_lines = len(batch["input_ids"])
        return num_lines if self.data_collator.shared_prompt else num_lines // 2

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count the pairs of a step, of all processes."""
        num_pairs = torch.tensor([sum(self.num_pairs(batch) for batch in batch_samples)], device=device)
        return self.accelerator.gather(num_pairs).sum()  # type: ignore[no-any-return]  # accelerate leaves it bare

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        assert isinstance(num_items_in_batch, Tensor)
        # Upstream divides a batch's mean by it. Each pair of a step is to count the same, also where its last batch is
        # smaller; and DDP averages the gradients of its processes.
        num_pairs = self.num_pairs(inputs) * self.accelerator.num_processes
        self.current_gradient_accumulation_steps = num_items_in_batch / num_pairs
        return super().training_step(model, inputs, num_items_in_batch)

    def record_accuracy(self, name: str, margins_B: Tensor) -> None:
        """Put our accuracy in place of upstream's, for which a tie is wrong: before the first step all pairs are."""
        model: Any = self.model
        mode = "train" if model.training else "eval"
        right = (margins_B > 0).float() + (margins_B == 0).float() / 2
        self._metrics[mode][name][-1] = self.accelerator.gather_for_metrics(right.detach()).mean().item()

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        num_pairs = self.num_pairs(inputs)
        result = super().prediction_step(model, inputs, *args, **kwargs)
        for values in self._metrics["eval"].values():
            # Upstream averages the batches' means, and the last batch is often smaller: count each pair once.
            values.extend(values[-1:] * (num_pairs - 1))
        return result
