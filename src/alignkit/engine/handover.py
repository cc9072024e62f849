"""The adapter of a model in a folder that servers read, under a name of its own whenever its weights are others.

The name is made of the weights: a server keeps what it has computed by the name of the adapter, and one that is loaded
again under the same name may be served with blocks of the weights before (vllm-project/vllm#42125).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from alignkit.engine.client import Refused, Unanswered
from alignkit.engine.vllm_server import VllmServer
from alignkit.errors import ConfigError
from alignkit.models.adapters import FIRST, Adapters


class AdapterFolder:
    """Holds the adapter of a model as it was last.

    Args:
        folder: where adapters are written, each into a folder of its own.
        run: begins their names.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self.folder, self.run = folder, run

    def name_of(self, adapters: Adapters, held: Mapping[str, Tensor] | None = None) -> str:
        """Name the adapter by its weights.

        Args:
            adapters: of the model.
            held: its weights by the names of the model, where it holds a share of each only.
        """
        digest = blake2b(digest_size=6)
        digest.update(json.dumps(adapters.model.peft_config[FIRST].to_dict(), default=_plain, sort_keys=True).encode())
        for name, weight in sorted(adapters.weights(FIRST, held).items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return f"{self.run}-{digest.hexdigest()}"

    def write(self, model: PeftModel, name: str, held: Mapping[str, Tensor] | None = None) -> Path:
        """Write the adapter as every later command reads one; the folder is its result. Arguments as in `name_of`."""
        place = self.folder / name
        model.save_pretrained(str(place), selected_adapters=[FIRST], save_embedding_layers=False, state_dict=held)
        return place.resolve()

    def remove_others(self, name: str) -> None:
        """Remove every adapter but the one of this name."""
        for place in self.folder.iterdir():
            if place.is_dir() and place.name != name:
                shutil.rmtree(place)


def give_first(servers: Sequence[VllmServer], name: str, folder: Path) -> None:
    """Load the first adapter of a run on every server.

    Raises:
        ConfigError: one line for each server that does not take it, with the way out.
    """
    problems = []
    for server in servers:
        try:
            server.load(name, folder)
        except (Unanswered, Refused) as error:
            problems.append(f"engine.servers: {server.url} {_why_not(str(error), folder)}")
    if problems:
        raise ConfigError(*problems)


def _why_not(said: str, folder: Path) -> str:
    if "No adapter found" in said or "No such file" in said:
        return f"cannot read {folder}: server and run must share the folder of the run under one path"
    if "max_lora_rank" in said:
        return f"takes adapters of a lower rank: start it with a higher --max-lora-rank, or lower lora.r ({said})"
    if "not enabled" in said or "enable_lora" in said:
        return f"takes no adapters: start it with --enable-lora ({said})"
    return f"does not take the adapter: {said}"


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
