"""The rows and prompts that a model is measured on, encoded for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from alignkit.config import DataConfig
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.sft import load_sft
from alignkit.evaluate.likelihood import Row
from alignkit.evaluate.prompts import Prompts
from alignkit.evaluate.served_model import ServedModel
from alignkit.models.load import longest_row
from alignkit.models.skeleton import skeleton


@dataclass
class HeldOutData:
    """What a model is measured on, encoded for it.

    Attributes:
        sources: of the rows, `file:N`.
        rows: with the labels that training has.
        prompts: the prompts that are answered, no two of them the same.
        prompt_ids: their tokens.
        ledger: what became of every row.
    """

    sources: list[str]
    rows: list[Row]
    prompts: Prompts
    prompt_ids: list[list[int]]
    ledger: Ledger = field(repr=False)


def load_held_out(data: DataConfig, model: ServedModel, *, num_prompts: int, seed: int) -> HeldOutData:
    """Read the rows that a section `data` holds out; all of `data.path` if it holds none out.

    Args:
        data: the section.
        model: the rows are encoded with its tokenizer and template.
        num_prompts: how many different prompts of the rows are answered, at most.
        seed: of the split.

    Raises:
        DataError: rows cannot be read, or none is left.
    """
    data = replace(data, tools=model.rules.tools, reasoning=model.rules.reasoning)
    if data.eval_path is None:
        data = replace(data, streaming=False)  # which reads the first rows alone
    longest = longest_row(data.max_length, skeleton(model.config).config)
    loaded = load_sft(data, model.template, model.tokenizer, max_length=longest, seed=seed, num_examples=num_prompts)
    sets = list(loaded.evals.values()) or [loaded.train]
    rows = [
        Row(ids, labels)
        for rows in sets
        for ids, labels in zip(rows.dataset["input_ids"], rows.dataset["labels"], strict=True)
    ]
    chosen = [row.prompt() for row in loaded.examples]
    prompts = [(f"held-out prompt {number}", prompt) for number, prompt in enumerate(chosen, start=1)]
    sources = [source for rows in sets for source in rows.sources]
    return HeldOutData(sources, rows, prompts, model.encode(prompts), loaded.ledger)
