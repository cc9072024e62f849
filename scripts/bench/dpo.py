"""Pairs per second and peak memory of `alignkit dpo`, against plain TRL scripts on the same pairs.

    python scripts/bench/dpo.py                                      # a random Llama of 20 M weights, pairs made here
    python scripts/bench/dpo.py --model FOLDER --rows pairs.jsonl    # prompt, chosen, rejected

How it is measured: `side_by_side.py`. Ratios are only printed when all variants have seen the same pairs with the same
number of response tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from made_pairs import prepare, rows
from side_by_side import Work, take_turns

from alignkit.data.batches.pair_batching import CHOSEN

VARIANTS = {
    "trl": "TRL: its defaults (bf16 where native)",
    "trl-tuned": "TRL by hand: bf16, no checkpointing",
    "trl-float32": "TRL by hand: float32, no checkpointing",
    "grouped": "alignkit by length, float32",
    "float32": "alignkit in float32",
    "kept": "alignkit, float32, reference kept",
    "auto": "alignkit: its defaults (bf16 where native)",
}
BASELINES = ("trl", "trl-tuned", "trl-float32")
SETTINGS = {
    "grouped": ["model.dtype=float32", "data.batching=grouped"],
    "float32": ["model.dtype=float32"],
    "kept": ["model.dtype=float32", "reference.keep=true"],
    "auto": [],
}


def train(variant: str, options: argparse.Namespace) -> None:
    if variant in BASELINES:
        with_trl(variant, options.batch_size)
        return
    from alignkit.cli import app

    same = ["model.name=model", "data.path=pairs.jsonl", "template.file=template.jinja", "samples=0", "overwrite=true"]
    same += ["train.num_train_epochs=1", "train.save_strategy='no'"]
    same += [f"train.per_device_train_batch_size={options.batch_size}"]
    app(["dpo", *same, *SETTINGS[variant]], standalone_mode=False)


def with_trl(variant: str, batch_size: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from alignkit.models.load import default_dtype

    native = default_dtype() is torch.bfloat16
    chosen: dict[str, Any] = {
        "trl": {"bf16": native},
        "trl-tuned": {"bf16": native, "gradient_checkpointing": False},
        "trl-float32": {"bf16": False, "gradient_checkpointing": False},
    }[variant]
    chosen |= {"num_train_epochs": 1, "save_strategy": "no", "use_cpu": not torch.cuda.is_available()}
    args = DPOConfig("trl", per_device_train_batch_size=batch_size, **chosen)
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    DPOTrainer(
        model=model,
        args=args,
        train_dataset=rows(Path("pairs.jsonl")),
        processing_class=AutoTokenizer.from_pretrained("model"),
    ).train()


def work_of(batch: Any) -> Work:
    if "parts" in batch:
        num_pairs = int((batch["parts"] == CHOSEN).any(1).sum())
        num_tokens = int((batch["shift_labels"] != -100).sum())
    else:
        num_pairs, num_tokens = len(batch["input_ids"]) // 2, int(batch["completion_mask"].sum())
    return Work(num_pairs, {"response tokens": num_tokens}, batch["input_ids"].numel())


if __name__ == "__main__":
    take_turns(str(__doc__), VARIANTS, BASELINES, "pairs", prepare, train, work_of)
