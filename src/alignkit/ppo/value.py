"""Value functions: a head that expects the return of a completion from the states of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignkit.models.adapters import Adapters
from alignkit.models.source import ADAPTER_WEIGHTS
from alignkit.ppo.scoring import Sequences, at_left, inputs_of, predicting_at_left, predicting_positions
from alignkit.ppo.sharded import as_held, below, read_weights
from alignkit.sampling.padding import sees_left_padding, takes_positions

VALUE_HEAD = "value_head.safetensors"
_WEIGHTS = "model.safetensors"
VALUE_FOLDER = "value"  # of what computes the head's states, where that is not the policy
VALUE_ADAPTER = "value_function"  # its name on the backbone


class ValueHead(nn.Module):
    """A linear map from a hidden state to a value, in float32 whatever the model computes in.

    It starts at zero: the first advantages come from the rewards alone, and no random initial values have to be
    unlearned.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight_H = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float32))  # a tensor without a dimension cannot be sharded

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Compute values `[B, T]` of states `[B, T, H]`."""
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            values_BT: Tensor = hidden_BTH.float() @ self.weight_H + self.bias[0]
            return values_BT

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        held = self.state_dict() if weights is None else weights
        _write({**held, "bias": held["bias"].reshape(())}, folder / VALUE_HEAD)  # as in every run before

    def load(self, folder: Path) -> None:
        read = load_file(folder / VALUE_HEAD)
        held = {name: as_held(read[name].reshape(weight.shape), weight) for name, weight in self.named_parameters()}
        self.load_state_dict(held)


class ValueFunction(nn.Module):
    """A value function that is a head on the policy's own states, with nothing else in memory.

    Attributes:
        held: what is in memory for it beside the policy and the head, in words.
    """

    held = ""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = ValueHead(hidden_size)

    def forward(self, rows: Sequences, hidden_BTH: Tensor) -> Tensor:
        """Compute values `[B, T]` before each completion token.

        Args:
            rows: prompts and completions.
            hidden_BTH: the policy's states before these tokens.
        """
        values_BT: Tensor = self.head(hidden_BTH)
        return values_BT

    def weights(self) -> list[nn.Parameter]:
        """Return all weights that train."""
        return list(self.parameters())

    def gradient_checkpointing_enable(self, **how: Any) -> None:
        """Recompute activations in the backward pass, of layers that are not the policy's."""

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write what a later run can continue, beside a policy that is saved in the same folder.

        Args:
            folder: is there.
            weights: of the policy, gathered, where the processes hold their shares only.
        """
        self.head.save(folder, below(weights, "value.head."))

    def load(self, folder: Path) -> None:
        """Read the weights that `save` wrote."""
        self.head.load(folder)


class NoValueFunction(ValueFunction):
    """What takes the place of a value function where the advantages need none: nothing is held, trained or saved."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, rows: Sequences, hidden_BTH: Tensor) -> None:  # type: ignore[override]  # without a value function: None where the others return a tensor
        """Return nothing."""

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write nothing."""

    def load(self, folder: Path) -> None:
        """Read nothing."""


class AdapterValue(ValueFunction):
    """A value function on the frozen backbone, under an adapter of its own that starts as the policy's does."""

    held = "; the value function is a further adapter on it"

    def __init__(self, hidden_size: int, adapters: Adapters) -> None:
        super().__init__(hidden_size)
        adapters.copy(VALUE_ADAPTER, trains=True)
        self.adapters, self.sees_padding = adapters, sees_left_padding(backbone_of(adapters.model))
        read = set(map(id, backbone_of(adapters.model).parameters()))
        for weight in adapters.parameters(VALUE_ADAPTER):
            weight.requires_grad_(id(weight) in read)  # the LM head's are not on the way to a value

    def forward(self, rows: Sequences, hidden_BTH: Tensor) -> Tensor:
        with self.adapters.computing(VALUE_ADAPTER):
            return super().forward(rows, _states(backbone_of(self.adapters.model), rows, self.sees_padding))

    def weights(self) -> list[nn.Parameter]:
        adapter = self.adapters.parameters(VALUE_ADAPTER)  # not kept: sharding puts others in their places
        return [*self.head.parameters(), *(weight for weight in adapter if weight.requires_grad)]

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        super().save(folder, weights)
        (folder / VALUE_FOLDER).mkdir(exist_ok=True)
        _write(self.adapters.weights(VALUE_ADAPTER, below(weights, "model.")), folder / VALUE_FOLDER / ADAPTER_WEIGHTS)
        self.adapters.model.peft_config[VALUE_ADAPTER].save_pretrained(str(folder / VALUE_FOLDER))

    def load(self, folder: Path) -> None:
        super().load(folder)
        weights = read_weights(folder / VALUE_FOLDER / ADAPTER_WEIGHTS, self.adapters.model)
        self.adapters.set(VALUE_ADAPTER, weights)


class OwnValue(ValueFunction):
    """A value function on a backbone of its own, which trains with every weight.

    Args:
        backbone: without the head that it came with.
    """

    held = "; the value function is a backbone of its own that trains with every weight"

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone.config.get_text_config().hidden_size)
        self.backbone = backbone.requires_grad_(True)
        self.sees_padding = sees_left_padding(backbone)

    def forward(self, rows: Sequences, hidden_BTH: Tensor) -> Tensor:
        return super().forward(rows, _states(self.backbone, rows, self.sees_padding))

    def gradient_checkpointing_enable(self, **how: Any) -> None:
        self.backbone.gradient_checkpointing_enable(**how)

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        super().save(folder, weights)
        # one file, and by the names in memory, as `load` reads it
        how: Any = {"max_shard_size": "1TB", "save_original_format": False}
        self.backbone.save_pretrained(folder / VALUE_FOLDER, state_dict=below(weights, "value.backbone."), **how)
        (folder / VALUE_FOLDER / _WEIGHTS).chmod(0o644)

    def load(self, folder: Path) -> None:
        super().load(folder)
        self.backbone.load_state_dict(read_weights(folder / VALUE_FOLDER / _WEIGHTS, self.backbone))


def backbone_of(model: Any) -> PreTrainedModel:
    """Return a model without its head, adapters inside it or not."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    backbone: PreTrainedModel = getattr(base, base.base_model_prefix)
    return backbone


def _states(backbone: PreTrainedModel, rows: Sequences, sees_padding: bool) -> Tensor:
    """The states before each completion token, `[B, T, H]`."""
    inputs = inputs_of(at_left(rows) if sees_padding else rows, takes_positions=takes_positions(backbone))
    hidden_BLH: Tensor = backbone(**inputs, use_cache=False).last_hidden_state
    if sees_padding:
        return predicting_at_left(rows, hidden_BLH)
    hidden_BTH: Tensor = hidden_BLH[:, predicting_positions(rows)]
    return hidden_BTH


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # written 0600, unlike the files beside it
