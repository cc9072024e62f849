"""Policy, value head and reference as one module: one pass gives log-probabilities and values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.ppo.reference import as_reference, drop_reference, hold_reference
from alignkit.ppo.scoring import Scorer, Sequences
from alignkit.ppo.value import ValueHead


class Policy(nn.Module):
    """A causal language model in training, with its value head and the reference it is held to.

    Dropout stays off throughout: the policy that samples must be the policy that is trained.

    Args:
        model: the policy; a `PeftModel` trains its adapter, any other model every weight.
        adapter: the folder of the adapter that is trained further; None where there is none or it is fresh.
        eos_ids: the tokens that end a completion.
        entropy_trains: the loss has an entropy bonus.
        detach_values: the value loss trains the head alone.
    """

    def __init__(
        self, model: Any, *, adapter: Path | None, eos_ids: Sequence[int], entropy_trains: bool, detach_values: bool
    ) -> None:
        super().__init__()
        self.reference = hold_reference(model, adapter)
        self.model = model
        self.value_head = ValueHead(model.config.get_text_config().hidden_size)
        self.detach_values = detach_values
        self.scorer = Scorer(model, eos_ids=eos_ids, entropy_trains=entropy_trains)
        self._reference_scorer = (
            Scorer(self.reference, eos_ids=eos_ids, entropy_trains=False) if self.reference is not None else self.scorer
        )
        self.eval()

    @property
    def config(self) -> Any:
        return self.model.config

    def train(self, mode: bool = True) -> Policy:
        """Evaluation mode, whatever is asked, except for what recomputes activations: that asks for training mode."""
        super().train(False)
        for module in self.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self

    def gradient_checkpointing_enable(self, **how: Any) -> None:
        """Recompute activations in the backward pass, as upstream asks for it."""
        self.model.gradient_checkpointing_enable(**how)
        if self._has_adapter:  # the frozen embeddings would cut the graph that is recomputed
            self.model.enable_input_require_grads()

    def forward(self, rows: Sequences, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities, entropies and values of the completion tokens, `[B, T]` each."""
        scores = self.scorer(self.model, rows, temperature=temperature)
        hidden_BTH = scores.hidden_BTH.detach() if self.detach_values else scores.hidden_BTH
        return scores.logprobs_BT, scores.entropies_BT, self.value_head(hidden_BTH)

    @torch.no_grad()
    def reference_logprobs(self, rows: Sequences, *, temperature: float) -> Tensor:
        """Log-probabilities `[B, T]` of the same tokens under the reference."""
        if self.reference is not None:
            return self._reference_scorer(self.reference, rows, temperature=temperature).logprobs_BT
        with as_reference(self.model):
            return self.scorer(self.model, rows, temperature=temperature).logprobs_BT

    def save(self, folder: Path, *, is_main_process: bool) -> None:
        """The policy's trained weights and the value head, for a checkpoint; the reference is where it came from."""
        selected = {"selected_adapters": ["default"], "save_embedding_layers": False} if self._has_adapter else {}
        self.model.save_pretrained(folder, is_main_process=is_main_process, **selected)
        if is_main_process:
            self.value_head.save(folder)

    def finished(self) -> Any:
        """The trained model alone; the policy is not to be used after it."""
        drop_reference(self.model)
        return self.model

    @property
    def _has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")
