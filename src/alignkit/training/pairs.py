"""A causal model on a batch of pairs: what it is fed, and a trainer that measures pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.data.batches.batching import FILLER
from alignkit.data.batches.pair_batching import NOTHING, PairCollator, visible
from alignkit.training.measured import MeasuredTrainer


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


class PairTrainer(MeasuredTrainer):
    """Goes in front of TRL's reward and DPO trainers: encoded pairs stay as they are, held-out figures are per pair."""

    data_collator: PairCollator
    _total_train_tokens: int  # TRL's trainers have it
    _num_counted: int  # pairs of the batch that is computed, of this process and without fillers

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def model_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what the model is called with for a batch of this trainer's collator."""
        attention = self.accelerator.unwrap_model(self.model).config._attn_implementation
        return model_inputs(batch, attention=attention, shared_prompt=self.data_collator.shared_prompt)

    def num_pairs(self, batch: Mapping[str, Tensor]) -> int:
        """Count the pairs that lie in a batch, a filler among them where there is nothing else."""
        num_lines = len(batch["input_ids"])
        return num_lines if self.data_collator.shared_prompt else num_lines // 2

    def loss_weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (batch["row_index"] != FILLER).sum()

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Count the pairs of a step, of all processes; upstream asks for a held-out batch, too, and ignores it."""
        if "row_index" not in batch_samples[0]:
            return torch.tensor(self._num_counted)
        num_pairs = torch.stack([self.loss_weight(batch) for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(num_pairs[None]).sum()  # type: ignore[no-any-return]  # accelerate does not annotate it

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        assert isinstance(num_items_in_batch, Tensor)
        self._num_counted = int(self.loss_weight(inputs))
        # Upstream divides a batch's mean by it. Each pair of a step is to count the same, also where its last batch is
        # smaller; and DDP averages the gradients of its processes. Of fillers alone it is infinite: they count nothing.
        self.current_gradient_accumulation_steps = num_items_in_batch / (
            self._num_counted * self.accelerator.num_processes
        )
        return super().training_step(model, inputs, num_items_in_batch)

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._num_counted = int(self.loss_weight(inputs))
        return super().prediction_step(model, inputs, *args, **kwargs)

    @contextmanager
    def measuring(
        self, *, accuracy: str, num_tokens: Mapping[str, int] | None = None
    ) -> Iterator[Callable[[Tensor], None]]:
        """Let upstream measure this process's pairs alone, and then count each pair, and each token, of all of them.

        Upstream takes it that every batch has as many, in every process, too.

        Args:
            accuracy: upstream's name for the share of pairs that are right.
            num_tokens: those figures of upstream's that are means over tokens, and over how many.

        Yields:
            A function that takes the margins [B]: of them the accuracy is made. For upstream's a tie is wrong: before
            the first step all pairs are.
        """
        mode, tokens_before, accelerator = self._mode(), self._total_train_tokens, self.accelerator
        kept, self._metrics[mode] = self._metrics[mode], defaultdict(list)
        right: list[float] = []
        accelerator.gather = accelerator.gather_for_metrics = lambda values, **_: values
        try:
            yield lambda margins_B: right.append(((margins_B > 0).float() + (margins_B == 0) / 2).mean().item())
        finally:
            del accelerator.gather, accelerator.gather_for_metrics
            figures, self._metrics[mode] = self._metrics[mode], kept
        weight = self._num_counted
        added = (self._total_train_tokens - tokens_before) * bool(weight)
        self._total_train_tokens = tokens_before + int(sum(tokens for tokens, _ in self._of_all([(added, 1)])[0]))
        kept["num_tokens"] = [self._total_train_tokens]
        weights = num_tokens if num_tokens and weight else {}
        means = {name: values[-1] for name, values in figures.items() if name != "num_tokens"} | {accuracy: right[-1]}
        self.record({name: (mean, weights.get(name, weight)) for name, mean in means.items()})
