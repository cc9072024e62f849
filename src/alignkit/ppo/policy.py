"""Policy, value function and reference as one module: one pass gives log-probabilities and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit.models.adapters import FIRST, Adapters
from alignkit.models.source import ADAPTER_WEIGHTS
from alignkit.ppo.reference import Reference
from alignkit.ppo.scoring import CompletionScorer, Sequences
from alignkit.ppo.sharded import below, read_weights
from alignkit.ppo.value import ValueFunction, backbone_of

_NO_REFERENCE = "one copy of the model: the policy; without a KL penalty there is no reference"


class Policy(nn.Module):
    """A causal language model in training, with its value function and its reference.

    Dropout stays off throughout: the policy that samples must be the policy that is trained.

    Args:
        model: the policy; a `PeftModel` trains its adapter, any other model every weight.
        adapters: on the model, where it is a `PeftModel`.
        value: expects the return of its completions, token by token.
        reference: what it must stay near; None where there is never a KL penalty.
        eos_ids: the tokens that end a completion.
        entropy_trains: the loss has an entropy bonus.
        detach_values: the value loss keeps off the policy's own layers.
    """

    def __init__(
        self,
        model: Any,
        adapters: Adapters | None,
        value: ValueFunction,
        *,
        reference: Reference | None,
        eos_ids: Sequence[int],
        entropy_trains: bool,
        detach_values: bool,
    ) -> None:
        super().__init__()
        self.reference, self._reference_model = reference, reference.model if reference is not None else None
        self.model, self.adapters, self.value, self.eos_ids = model, adapters, value, list(eos_ids)
        self.detach_values = detach_values
        self.scorer = CompletionScorer(model, eos_ids=eos_ids, entropy_trains=entropy_trains)
        self._reference_scorer = (
            CompletionScorer(self._reference_model, eos_ids=eos_ids, entropy_trains=False)
            if self._reference_model is not None
            else self.scorer
        )
        self.eval()

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def backbone(self) -> nn.Module:
        """The model without its head: what every pass through it runs."""
        return backbone_of(self.model)

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that accelerate shards one by one, where it is told of none."""
        models = [module for module in self.modules() if isinstance(module, PreTrainedModel)]
        return sorted({name for model in models for name in model._no_split_modules or ()})

    @property
    def has_reference(self) -> bool:
        return self.reference is not None

    @property
    def held(self) -> str:
        """What is in memory of policy, reference and value function, in words."""
        if self.reference is None:
            return _NO_REFERENCE + self.value.held
        return self.reference.held(has_adapters=self.adapters is not None) + self.value.held

    def train(self, mode: bool = True) -> Policy:
        """Switch what recomputes activations to this mode, since it needs training mode, and the rest to evaluation."""
        super().train(False)
        recompute = [module for module in self.modules() if getattr(module, "gradient_checkpointing", False)]
        layers = [module for module in recompute if isinstance(module, GradientCheckpointingLayer)]
        for module in layers or recompute:
            module.training = mode
        return self

    def gradient_checkpointing_enable(self, **how: Any) -> None:
        """Recompute activations in the backward pass, as upstream asks for it."""
        chosen = {"use_reentrant": False, **(how.get("gradient_checkpointing_kwargs") or {})}
        if self.adapters is not None and not chosen["use_reentrant"]:
            chosen["context_fn"] = self.adapters.while_recomputing
        how["gradient_checkpointing_kwargs"] = chosen
        self.model.gradient_checkpointing_enable(**how)
        self.value.gradient_checkpointing_enable(**how)
        for module in self.modules():
            if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module._gradient_checkpointing_func = _in_evaluation(module)  # type: ignore[assignment]  # transformers, too, sets it from outside of its class
        if self.adapters is not None:  # the frozen embeddings would cut the graph that is recomputed
            self.model.enable_input_require_grads()

    def forward(self, rows: Sequences, temperature: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute log-probabilities, entropies and values of the completion tokens, `[B, T]` each.

        Without a value function there are no values.
        """
        scores = self.scorer(self.model, rows, temperature=temperature)
        hidden_BTH = scores.hidden_BTH.detach() if self.detach_values else scores.hidden_BTH
        return scores.logprobs_BT, scores.entropies_BT, self.value(rows, hidden_BTH)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function that uses the model outside of `forward`, where sharded weights must be gathered."""
        return function()

    def logprobs(self, rows: Sequences, *, temperature: float) -> Tensor:
        """Compute the log-probabilities `[B, T]` of the completion tokens alone."""
        return self.scorer(self.model, rows, temperature=temperature).logprobs_BT

    @torch.no_grad()
    def reference_logprobs(self, rows: Sequences, *, temperature: float) -> Tensor:
        """Compute the log-probabilities `[B, T]` of the same tokens under the reference."""
        if self._reference_model is not None:
            return self._reference_scorer(self._reference_model, rows, temperature=temperature).logprobs_BT
        assert self.adapters is not None
        assert self.reference is not None
        with self.adapters.computing(self.reference.adapter):
            return self.scorer(self.model, rows, temperature=temperature).logprobs_BT

    def policy_weights(self) -> list[nn.Parameter]:
        """Return the weights that train and are not the value function's."""
        values = set(map(id, self.value.weights()))
        return [weight for weight in self.parameters() if weight.requires_grad and id(weight) not in values]

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write what trains, for a checkpoint; the reference is where it came from.

        Args:
            folder: is there.
            weights: gathered, where the processes hold their shares only.
        """
        selected = {"selected_adapters": [FIRST], "save_embedding_layers": False} if self.adapters else {}
        self.model.save_pretrained(folder, state_dict=below(weights, "model."), **selected)
        self.value.save(folder, weights)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; of a policy without adapters, the value function alone."""
        if self.adapters is not None:
            self.adapters.set(FIRST, read_weights(folder / ADAPTER_WEIGHTS, self.model))
        self.value.load(folder)

    def finished(self) -> Any:
        """Return the trained model alone; the policy must not be used after it."""
        if self.adapters is not None:
            self.adapters.drop_others()
        return self.model


def _in_evaluation(layer: Any) -> Callable[..., Any]:
    """Recompute a layer with its training mode off while it computes: some layers apply dropout by that mode."""
    recomputing = layer._gradient_checkpointing_func

    def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def evaluated(*given: Any, **named: Any) -> Any:
            mode, layer.training = layer.training, False
            try:
                return function(*given, **named)
            finally:
                layer.training = mode

        return recomputing(evaluated, *args, **kwargs)

    return run
