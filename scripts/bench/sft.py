"""Supervised tokens per second and peak memory of `alignkit sft`, against plain TRL scripts on the same rows.

    python scripts/bench/sft.py                                   # a random Llama of 20 M weights, rows made here
    python scripts/bench/sft.py --model FOLDER --rows FILE --json out.json

How it is measured: `side_by_side.py`. Ratios are only printed when all variants have taken the same number of steps
over the very same supervised tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from side_by_side import TEMPLATE, WORDS, Work, place_model, take_turns

VARIANTS = {
    "trl": "TRL: its defaults (bf16 where native)",
    "trl-float32": "TRL: its defaults, in float32",
    "trl-tuned": "TRL by hand: packed, bf16, no checkpointing",
    "trl-padded": "TRL by hand: float32, no checkpointing",
    "padded": "alignkit padded, float32",
    "float32": "alignkit in float32",
    "auto": "alignkit: its defaults (bf16 where native)",
}
SETTINGS = {"padded": ["data.batching=padded", "model.dtype=float32"], "float32": ["model.dtype=float32"], "auto": []}
BASELINES = ("trl", "trl-float32", "trl-tuned", "trl-padded")
LONGEST = 1024  # tokens; TRL cuts rows there by default


def made_rows() -> Iterator[dict[str, str]]:
    """Lengths spread like those of instruction data: more than half of a padded batch of 8 is padding."""
    draw = random.Random(0)
    while True:
        lengths = draw.lognormvariate(3.7, 0.6), draw.lognormvariate(4.4, 1.0)
        prompt, completion = ("".join(f" {word}" for word in draw.choices(WORDS, k=1 + int(n))) for n in lengths)
        yield {"prompt": prompt, "completion": completion}


def read_rows(path: str, tokenizer: Any) -> Iterator[dict[str, str]]:
    """The rows of a data file in which one question has one answer, as the text that is trained on."""
    from alignkit.config import TemplateConfig
    from alignkit.data.encode.templates import load_template
    from alignkit.data.encode.trained_turns import trained_turn
    from alignkit.data.files import sources
    from alignkit.data.rows import formats

    template = load_template(TemplateConfig("instruction"), tokenizer)
    (source,) = sources.parse_sources(path, setting="--rows", format="auto", columns={}, split=None)
    rows = [row.row for row in sources.read_rows(source, limit=None)]
    format_ = formats.detect_format(rows[0].keys(), rows[0])
    for row in rows:
        conversation = formats.to_conversation(row, format_, {})
        if len(conversation.messages) == 2:  # one question and its answer
            turn = trained_turn(template, conversation, 1)
            prompt = turn.prompt.removeprefix(tokenizer.bos_token or "")
            yield {"prompt": prompt, "completion": turn.response.removesuffix(template.end_token)}


def prepare(work: Path, options: argparse.Namespace) -> None:
    """Write the model, the rows, our template, and the line length at which TRL packs one line for each step."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.data_utils import pack_dataset

    place_model(work / "model", options)
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    rows, ids = [], []
    for row in read_rows(options.rows, tokenizer) if options.rows else made_rows():
        prompt, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        if len(whole) < LONGEST and whole[: len(prompt)] == prompt:  # where a token spans the two, each cuts otherwise
            rows.append(json.dumps(row) + "\n")
            ids.append([*whole, tokenizer.eos_token_id])
        if len(rows) == options.steps * options.batch_size:
            break
    else:
        sys.exit(f"{options.rows}: {len(rows)} rows fit, {options.steps * options.batch_size} are needed")
    lengths = [len(row) for row in ids]
    line = max(*lengths, sum(lengths) // options.steps)
    while len(pack_dataset(Dataset.from_dict({"input_ids": ids}), line)) > options.steps:
        line += 8
    (work / "rows.jsonl").write_text("".join(rows))
    (work / "template.jinja").write_text(TEMPLATE)
    (work / "line").write_text(str(line))


def train_with_trl(variant: str, batch_size: int) -> None:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from alignkit.models.load import default_dtype

    native = default_dtype() is torch.bfloat16
    padded = {"per_device_train_batch_size": batch_size, "train_sampling_strategy": "sequential"}
    packed = {"per_device_train_batch_size": 1, "packing": True, "max_length": int(Path("line").read_text())}
    chosen = {
        "trl": {**padded, "bf16": native},
        "trl-float32": {**padded, "bf16": False},
        "trl-tuned": {**packed, "bf16": native, "gradient_checkpointing": False},
        "trl-padded": {**padded, "bf16": False, "gradient_checkpointing": False},
    }[variant]
    args = SFTConfig("trl", num_train_epochs=1, save_strategy="no", use_cpu=not torch.cuda.is_available(), **chosen)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    SFTTrainer(model="model", args=args, train_dataset=Dataset.from_list(rows)).train()


def train_with_alignkit(variant: str, batch_size: int) -> None:
    from alignkit.cli import app

    same = ["model.name=model", "data.path=rows.jsonl", "data.shuffle=false", "template.file=template.jinja"]
    same += ["train.num_train_epochs=1", "train.save_strategy='no'", f"train.per_device_train_batch_size={batch_size}"]
    app(["sft", *same, "samples=0", "overwrite=true", *SETTINGS[variant]], standalone_mode=False)


def train(variant: str, options: argparse.Namespace) -> None:
    (train_with_trl if variant in BASELINES else train_with_alignkit)(variant, options.batch_size)


def work_of(batch: Mapping[str, Any]) -> Work:
    labels = batch["labels"][:, 1:]
    supervised = labels[labels != -100]
    return Work(len(supervised), {"sum of labels": int(supervised.sum())}, labels.numel())


if __name__ == "__main__":
    take_turns(str(__doc__), VARIANTS, BASELINES, "tokens", prepare, train, work_of)
