"""Reference log-probabilities computed once and kept on disk, so that later epochs and later runs need no reference.

They are found again by what they were made of: every weight of the reference, every token of the pairs (which template,
data and length policy made), and how it was computed. A changed byte in any of them is another file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alignkit.training.dpo import REFERENCE_ADAPTER, DpoTrainer

logger = logging.getLogger(__name__)

_NAMES = ("ref_chosen_logps", "ref_rejected_logps")


def with_reference(trainer: DpoTrainer, dataset: Dataset, folder: Path) -> Dataset:
    """Give the pairs the columns `ref_chosen_logps` and `ref_rejected_logps`, from disk or computed now.

    Args:
        trainer: has not taken a step.
        dataset: encoded pairs, numbered by `row_index` from 0.
        folder: of the kept files, each named by its key.
    """
    path = folder / f"{_key(trainer, dataset)}.safetensors"
    if path.is_file():
        logger.info("reference: log-probabilities of %s pairs kept in %s", f"{len(dataset):,}", path)
        kept = load_file(path)
    else:
        logger.info("reference: computing log-probabilities of %s pairs", f"{len(dataset):,}")
        kept = _computed(trainer, dataset)
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".partial")
            save_file(kept, aside)
            aside.replace(path)
    trainer.accelerator.wait_for_everyone()
    for name in _NAMES:
        dataset = dataset.add_column(name, kept[name].numpy())
    return dataset


def _computed(trainer: DpoTrainer, dataset: Dataset) -> dict[str, Tensor]:
    found = {name: torch.zeros(len(dataset)) for name in _NAMES}
    for batch in trainer.get_eval_dataloader(dataset):
        with trainer.compute_loss_context_manager():
            both = trainer.reference_log_probs(trainer._prepare_inputs(batch))
        rows = trainer.accelerator.gather(batch["row_index"]).cpu()
        for name, values in zip(_NAMES, both, strict=True):
            found[name][rows] = trainer.accelerator.gather(values.float()).cpu()
    return found


def _key(trainer: DpoTrainer, dataset: Dataset) -> str:
    digest = hashlib.sha256()
    args: Any = trainer.args
    facts = {"bf16": args.bf16, "fp16": args.fp16, "ld_alpha": args.ld_alpha, "torch": torch.__version__}
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, weight in sorted(_reference_weights(trainer).items()):
        digest.update(f"\n{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    for row in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _reference_weights(trainer: DpoTrainer) -> dict[str, Tensor]:
    """Those that the reference computes with: another model's, or the policy's less what trains."""
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    if not isinstance(model, PeftModel):
        return weights
    trained = str(model.active_adapter)
    frozen = REFERENCE_ADAPTER in model.peft_config
    return {
        name: weight
        for name, weight in weights.items()
        if f".{trained}." not in f"{name}." and (frozen or not weight.requires_grad)
    }
