"""TRL's SFT trainer on encoded rows: our order, our checkpoints, and the loss of `lm_head.cross_entropy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer as UpstreamTrainer

from alignkit.data.batches.batching import row_tokens
from alignkit.training.lm_head import complete_head, cross_entropy, hidden_states, is_plain_head, lm_head
from alignkit.training.measured import MeasuredTrainer
from alignkit.training.sharding import is_sharded


class SftTrainer(MeasuredTrainer, UpstreamTrainer):  # type: ignore[misc]  # TRL ships no annotations
    """`trl.SFTTrainer` for rows that are already encoded; arguments as `MeasuredTrainer` and upstream take them."""

    router_aux_loss_coef: float  # upstream's

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        complete_head(self.model)
        if self.aux_loss_enabled:
            # Upstream asks for them in each of its calls, and here for every other: the loss of a router is made with
            # the mask of its batch, and where a cache holds most of it the two do not fit.
            model: Any = self.model
            model.config.get_text_config().output_router_logits = False
        args: Any = self.args
        # Upstream's head is compact on CUDA only: elsewhere it scores every position, prompts and padding too. The head
        # of sharded or compiled weights cannot be called outside the model's forward.
        self._own_head = (
            args.device.type != "cuda"
            and not (is_sharded(self) or args.torch_compile)
            and not (self.aux_loss_enabled or self.label_smoother or args.loss_type != "nll")
            and is_plain_head(self.model)
        )

    def loss_weight(self, batch: Mapping[str, Tensor]) -> Tensor:
        return (batch["labels"][:, 1:] != -100).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the cross entropy of the supervised tokens, over their number in the global batch.

        Shapes: `input_ids` and `labels` [B, L]; the token at t is predicted from those before it.
        """
        if not self._own_head or return_outputs:
            with self._router_loss_of_rows(inputs) as inputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BL = inputs["labels"][:, 1:]
        supervised_BL = labels_BL != -100
        head = lm_head(self.model)
        with hidden_states(head) as caught:
            model(**{key: value for key, value in inputs.items() if key != "labels"}, use_cache=False)
        loss, num_correct = cross_entropy(caught[0][:, :-1][supervised_BL], head.weight, labels_BL[supervised_BL])
        count = supervised_BL.sum()
        self.record({"mean_token_accuracy": (num_correct.item() / max(count.item(), 1), count.item())})
        if num_items_in_batch is None:
            return loss / count.clamp(min=1)
        # DDP averages the gradients of its ranks, and num_items_in_batch counts the tokens of all of them.
        across = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss / torch.as_tensor(num_items_in_batch).clamp(min=1) * across

    @contextmanager
    def _router_loss_of_rows(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Let the loss of a mixture's router count the tokens of rows alone, and stay out of held-out figures.

        Upstream makes it of every position where there is no mask, as beside packed rows: padding and fillers, too.
        """
        if not self.aux_loss_enabled:
            yield inputs
            return
        model: Any = self.model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        rows_BL = row_tokens(inputs)
        seen = {"attention_mask": inputs.get("attention_mask")}  # attention goes on to see what it saw
        handle = base.base_model.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, **seen}), with_kwargs=True
        )
        coefficient = self.router_aux_loss_coef
        self.router_aux_loss_coef = coefficient if model.training else 0.0
        try:
            yield {**inputs, "attention_mask": (rows_BL | ~rows_BL.any()).long()}  # of nothing it would not be a number
        finally:
            self.router_aux_loss_coef = coefficient
            handle.remove()
