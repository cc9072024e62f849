"""What is expected of a completion from here on: a head on the policy's hidden states."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VALUE_HEAD = "value_head.safetensors"


def check_value_head(folder: Path, hidden_size: int) -> list[str]:
    """What is wrong with a folder that a value head is to be taken from, one line each."""
    if not (folder / VALUE_HEAD).is_file():
        return [f"value.start: {folder} has no value head, no {VALUE_HEAD}: a run of alignkit ppo has one"]
    size = load_file(folder / VALUE_HEAD)["weight_H"].shape[0]
    if size != hidden_size:
        return [
            f"value.start: the value head of {folder} reads states of {size} numbers, this model's have {hidden_size}"
        ]
    return []


class ValueHead(nn.Module):
    """A linear map from a hidden state to a value, in float32 whatever the model computes in.

    It starts at zero: the first advantages are then the rewards themselves, and no accident of initialisation has to be
    unlearned.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight_H = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Values `[B, T]` of states `[B, T, H]`."""
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            values_BT: Tensor = hidden_BTH.float() @ self.weight_H + self.bias
            return values_BT

    def save(self, folder: Path) -> None:
        state = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        save_file(state, folder / VALUE_HEAD, metadata={"format": "pt"})

    def load(self, folder: Path) -> None:
        self.load_state_dict(load_file(folder / VALUE_HEAD))
