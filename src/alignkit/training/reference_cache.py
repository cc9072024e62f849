"""Reference log-probabilities computed once and kept on disk, so that later epochs and later runs need no reference.

They are found again by what they were made of: every weight of the reference and every setting that its forward pass
reads, every token of the pairs (which template, data and length policy made) and which of them carry loss, and how it
was computed. A changed byte in any of them is another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from datasets import Dataset
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.data.batches.batching import FILLER
from alignkit.data.sets.pairs import PairSet
from alignkit.runs.full_disk import is_disk_full
from alignkit.training.dpo import REFERENCE_ADAPTER, DpoTrainer

logger = logging.getLogger(__name__)

_NAMES = ("ref_chosen_logps", "ref_rejected_logps")
_NOT_READ = ("_name_or_path", "transformers_version")  # of a configuration: a model that was moved is the same model


def with_reference(trainer: DpoTrainer, dataset: Dataset, folder: Path) -> Dataset:
    """Give the pairs the columns `ref_chosen_logps` and `ref_rejected_logps`, from disk or computed now.

    Args:
        trainer: has not taken a step.
        dataset: encoded pairs, numbered by `row_index` from 0, and perhaps fillers at its end.
        folder: of the kept files, each named by its key.
    """
    num_fillers = PairSet(dataset).num_fillers
    num_pairs = len(dataset) - num_fillers
    path = folder / f"{_key(trainer, dataset.select(range(num_pairs)))}.safetensors"
    if path.is_file():
        logger.info("reference: log-probabilities of %s pairs kept in %s", f"{num_pairs:,}", path)
        kept = load_file(path)
    else:
        logger.info("reference: computing log-probabilities of %s pairs", f"{num_pairs:,}")
        kept = _computed(trainer, dataset, num_pairs)
        if trainer.is_world_process_zero():
            _keep(kept, path)
    trainer.accelerator.wait_for_everyone()
    for name in _NAMES:
        dataset = dataset.add_column(name, nn.functional.pad(kept[name], (0, num_fillers)).numpy())
    return dataset


def _keep(kept: dict[str, Tensor], path: Path) -> None:
    """Write the file whole or not at all: without it the next run computes once more."""
    aside = path.with_suffix(f".{socket.gethostname()}.{os.getpid()}.partial")  # another run may keep the same
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, aside)
        aside.replace(path)
    except Exception as error:
        with suppress(OSError):
            aside.unlink()
        if not (isinstance(error, OSError) or is_disk_full(error)):
            raise
        logger.warning("reference: the log-probabilities are not kept: %s cannot be written (%s)", path, error)


def _computed(trainer: DpoTrainer, dataset: Dataset, num_pairs: int) -> dict[str, Tensor]:
    found = {name: torch.zeros(num_pairs) for name in _NAMES}
    accelerator = trainer.accelerator
    for batch in trainer.get_eval_dataloader(dataset):
        with trainer.compute_loss_context_manager():
            both = trainer.reference_log_probs(trainer._prepare_inputs(batch))
        # batches differ in size where fillers were left out
        rows = accelerator.gather(accelerator.pad_across_processes(batch["row_index"], pad_index=FILLER)).cpu()
        for name, values in zip(_NAMES, both, strict=True):
            everyones = accelerator.gather(accelerator.pad_across_processes(values.float())).cpu()
            found[name][rows[rows != FILLER]] = everyones[rows != FILLER]
    return found


def _key(trainer: DpoTrainer, dataset: Dataset) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(_facts(trainer), sort_keys=True, default=_plain).encode())
    for name, weight in sorted(_reference_weights(trainer).items()):
        digest.update(f"\n{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    masks = [name for name in ("chosen_masked", "rejected_masked") if name in dataset.column_names]
    for row in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids", *masks]):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _facts(trainer: DpoTrainer) -> dict[str, Any]:
    """What the forward pass of the reference reads beside its weights."""
    args: Any = trainer.args
    model = _reference_model(trainer)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = {key: value for key, value in base.config.to_dict().items() if key not in _NOT_READ}
    return {
        "config": config,
        "attention": base.config._attn_implementation,
        "class": f"{type(base).__module__}.{type(base).__qualname__}",  # of code from the hub, with its commit
        "adapters": {name: adapter.to_dict() for name, adapter in _reference_adapters(model).items()},
        "ld_alpha": args.ld_alpha,
        "precision": trainer.accelerator.mixed_precision,
        "versions": [torch.__version__, transformers.__version__, peft.__version__],
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)


def _reference_model(trainer: DpoTrainer) -> nn.Module:
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)
    return model


def _reference_adapters(model: Any) -> dict[str, PeftConfig]:
    """Those that compute while the model is the reference: all but the one that the policy trains."""
    trained = model.active_adapter if isinstance(model, PeftModel) else None
    return {name: config for name, config in getattr(model, "peft_config", {}).items() if name != trained}


def _reference_weights(trainer: DpoTrainer) -> dict[str, Tensor]:
    """Those that the reference computes with: another model's, or the policy's less what trains.

    Buffers are among them, saved with the model or not: the frequencies of positions, the scales of quantized weights.
    """
    model = _reference_model(trainer)
    weights: dict[str, Tensor] = {
        name: weight
        for name, weight in (model.state_dict(keep_vars=True) | dict(model.named_buffers())).items()
        if isinstance(weight, Tensor)
    }
    if not isinstance(model, PeftModel):
        return weights
    trained = str(model.active_adapter)
    frozen = REFERENCE_ADAPTER in model.peft_config
    return {
        name: weight
        for name, weight in weights.items()
        if f".{trained}." not in f"{name}." and (frozen or not weight.requires_grad)
    }
