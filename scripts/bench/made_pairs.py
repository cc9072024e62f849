"""Preference pairs for the benches: made here, or read from a file, as all variants see them."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from side_by_side import TEMPLATE, WORDS, place_model


def prepare(work: Path, options: argparse.Namespace) -> None:
    """Write the model, the pairs and our template; lengths are spread like those of preference data."""
    place_model(work / "model", options)
    (work / "template.jinja").write_text(TEMPLATE)
    num = options.steps * options.batch_size
    if options.rows:
        lines = Path(options.rows).read_text(encoding="utf-8").splitlines()[:num]
        (work / "pairs.jsonl").write_text("".join(line + "\n" for line in lines))
        return
    draw = random.Random(0)

    def text(middle: float, spread: float) -> str:
        length = min(300, 1 + int(draw.lognormvariate(middle, spread)))
        return "".join(f" {word}" for word in draw.choices(WORDS, k=length))

    pairs = [{"prompt": text(4.0, 0.7), "chosen": text(4.0, 0.9), "rejected": text(4.0, 0.9)} for _ in range(num)]
    (work / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def rows(path: Path) -> Any:
    from datasets import Dataset

    return Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
