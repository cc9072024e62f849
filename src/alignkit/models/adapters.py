"""Several adapters on one backbone, of which one computes at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

FIRST = "default"  # PEFT's name of the adapter that a model came with


class Adapters:
    """Puts further adapters beside the first one of a model, all without dropout, and switches between them.

    Which weights train is another matter, and stays as it is through every switch. PEFT's own switches decide both at
    once, in a walk through every module: there and back takes them 36 to 60 ms in SmolLM2-135M with four adapters, on
    one core, and a block of `computing` 0.1 ms.

    Args:
        model: with the adapter that `save_pretrained` is to write.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self._active: str | None = FIRST
        self._names: dict[str, set[str]] = {}
        self._layers = self._found()

    def add(self, name: str, config: PeftConfig, weights: Mapping[str, Tensor], *, trains: bool) -> None:
        """Put a further adapter on the backbone; the first one goes on computing.

        Args:
            name: of the new one.
            config: where it sits.
            weights: as PEFT saves them.
            trains: it takes gradients from now on.
        """
        # PEFT saves by looking for names: it would take the weights of such a module for this adapter's.
        assert not any(name in place.split(".") for place, _ in self.model.named_modules()), f"{name} is a module"
        before = {place for place, _ in self.model.named_parameters()}
        config = copy.deepcopy(config)
        # As they are drawn does not matter, but some ways to draw them take a part of the backbone away with them.
        config.init_lora_weights, config.inference_mode = True, not trains
        with torch.random.fork_rng(devices=[]):
            self.model.add_adapter(name, config)
        self._names[name] = {place for place, _ in self.model.named_parameters()} - before
        self.set(name, weights)
        self.model.set_requires_grad(name, trains)
        self.model.eval()  # PEFT adds its dropout switched on
        self._layers = self._found()

    def copy(self, name: str, *, trains: bool) -> None:
        """Put a twin of the first adapter beside it."""
        self.add(name, self.model.peft_config[FIRST], self.weights(FIRST), trains=trains)

    def set(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Give an adapter other weights, as PEFT saves them; which of them train stays as it is."""
        unknown = set_peft_model_state_dict(self.model, dict(weights), adapter_name=name).unexpected_keys
        assert not unknown, f"no place for {unknown}"

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Return the weights of an adapter that was added, as an optimizer takes them."""
        return [weight for place, weight in self.model.named_parameters() if place in self._names[name]]

    def weights(self, name: str, held: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the weights of an adapter, as PEFT saves them.

        Args:
            name: of the adapter.
            held: the weights of the model, where it holds a share of each only.
        """
        found: dict[str, Tensor] = get_peft_model_state_dict(
            self.model, state_dict=held, adapter_name=name, save_embedding_layers=False
        )
        return found

    def drop_others(self) -> None:
        """Take every adapter off but the first."""
        for name in [name for name in self.model.peft_config if name != FIRST]:
            self.model.delete_adapter(name)
        self._layers = self._found()

    @contextmanager
    def computing(self, name: str | None) -> Iterator[None]:
        """Let the model compute with this adapter, or with none, while the block runs."""
        before, self._active = self._active, name
        self._switch()
        try:
            yield
        finally:
            self._active = before
            self._switch()

    def while_recomputing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what gradient checkpointing enters in the forward pass, and when it runs a part of it again.

        The backward pass comes when the block around the forward pass is long left.
        """
        return nullcontext(), self.computing(self._active)

    def _switch(self) -> None:
        names = [] if self._active is None else [self._active]
        for layer in self._layers:
            object.__setattr__(layer, "_active_adapter", names)  # a module's own looks for weights first, and is slow

    def _found(self) -> list[Any]:
        return [m for m in self.model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
