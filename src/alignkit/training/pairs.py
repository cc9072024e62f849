"""A causal model on a batch of pairs: what it is fed, and a trainer that measures pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.data.batches.pair_batching import NOTHING, PairCollator, visible
from alignkit.training.ordered import OrderedTrainer

_TAKE_A_MASK = ("eager", "sdpa")  # flash kernels know causal attention only


def model_inputs(batch: Mapping[str, Tensor], *, attention: str, shared_prompt: bool) -> dict[str, Any]:
    """What a model is called with for a batch of `PairCollator`.

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


def may_share_prompts(model: PreTrainedModel) -> bool:
    """Whether the architecture could: a mask of ours takes the place of a sliding window's, and flash takes none."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return model.config._attn_implementation in _TAKE_A_MASK and not windowed and set(kinds) == {"full_attention"}


def shares_prompts_exactly(model: PreTrainedModel, head: nn.Module) -> bool:
    """Whether two responses behind one prompt score as they do behind one each, tried on the very model that trains.

    The bound is a share of the states' own spread: 0.1 % in float32, a quarter in half precision.

    Args:
        model: any model with a causal backbone.
        head: its last module, which is called with the backbone's states.
    """
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    ids = [torch.randint(size, (length,), generator=generator).tolist() for length in (5, 4, 6)]
    pair = {"prompt_ids": ids[0], "chosen_ids": ids[1], "rejected_ids": ids[2], "row_index": 0}
    weight = next(model.parameters())
    states = []
    was_training = model.training
    model.eval()
    try:
        for shared in (False, True):
            batch = {k: v.to(weight.device) for k, v in PairCollator(0, shared_prompt=shared)([pair, pair]).items()}
            inputs = model_inputs(batch, attention=model.config._attn_implementation, shared_prompt=shared)
            with torch.inference_mode(), inputs_of(head) as caught:
                model(**inputs)
            # both layouts in one order: chosen states, then rejected ones
            order = [caught[0][batch["parts"] == part] for part in (2, 3)]
            states.append(torch.cat(order).float())
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False  # an architecture that makes more of its mask than attention (ALiBi, state spaces)
    finally:
        model.train(was_training)
    bound = (1e-3 if weight.dtype == torch.float32 else 0.25) * float(states[0].std())
    return bool((states[0] - states[1]).abs().max() <= bound)


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
        """What the model is called with for a batch of this trainer's collator."""
        attention = self.accelerator.unwrap_model(self.model).config._attn_implementation
        return model_inputs(batch, attention=attention, shared_prompt=self.data_collator.shared_prompt)

    def num_pairs(self, batch: Mapping[str, Tensor]) -> int:
        num_lines = len(batch["input_ids"])
        return num_lines if self.data_collator.shared_prompt else num_lines // 2

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
