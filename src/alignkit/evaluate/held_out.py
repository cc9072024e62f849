"""The rows and prompts that a model is measured on, encoded for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from alignkit.config import PromptDataConfig
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.responses import RESPONSES
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.prompts import load_prompts
from alignkit.data.sets.sft import load_sft
from alignkit.evaluate.likelihood import Row
from alignkit.evaluate.prompts import Prompts
from alignkit.evaluate.served_model import ServedModel
from alignkit.models.load import longest_row, num_positions
from alignkit.models.skeleton import skeleton


@dataclass
class HeldOutData:
    """What a model is measured on, encoded for it.

    Attributes:
        sources: of the rows, `file:N`.
        rows: with the labels that training has; none where only prompts are measured, as of PPO.
        prompts: the prompts that are answered, no two of them the same.
        prompt_ids: their tokens.
        ledger: what became of every row.
    """

    sources: list[str]
    rows: list[Row]
    prompts: Prompts
    prompt_ids: list[list[int]]
    ledger: Ledger = field(repr=False)


def load_held_out(
    data: PromptDataConfig, model: ServedModel, *, as_prompts: bool, max_new_tokens: int, num_prompts: int, seed: int
) -> HeldOutData:
    """Read the rows that a section `data` holds out; all of `data.path` if it holds none out.

    Args:
        data: the section.
        model: the rows are encoded with its tokenizer and template.
        as_prompts: read rows as PPO does, which has no use for responses; there are no rows then.
        max_new_tokens: for which a prompt leaves room.
        num_prompts: how many different prompts of the rows are answered, at most.
        seed: of the split.

    Raises:
        DataError: rows cannot be read, or none is left.
    """
    data = replace(data, tools=model.rules.tools, reasoning=model.rules.reasoning)
    if as_prompts:
        return _prompts(data, model, max_new_tokens=max_new_tokens, num_prompts=num_prompts, seed=seed)
    if data.eval_path is None:
        data = replace(data, streaming=False)  # which reads the first rows alone
    longest = longest_row(data.max_length, skeleton(model.config).config)
    loaded = load_sft(
        data,
        model.template,
        model.tokenizer,
        max_length=longest,
        seed=seed,
        num_examples=num_prompts,
        kind=RESPONSES,
    )
    sets = list(loaded.evals.values()) or [loaded.train]
    rows = [
        Row(ids, labels)
        for rows in sets
        for ids, labels in zip(rows.dataset["input_ids"], rows.dataset["labels"], strict=True)
    ]
    prompts = _numbered([row.prompt() for row in loaded.examples])
    sources = [source for rows in sets for source in rows.sources]
    return HeldOutData(sources, rows, prompts, model.encode(prompts), loaded.ledger)


def _prompts(
    data: PromptDataConfig, model: ServedModel, *, max_new_tokens: int, num_prompts: int, seed: int
) -> HeldOutData:
    config = skeleton(model.config).config
    positions = num_positions(config)
    longest = longest_row(data.max_length, config)
    longest = longest if positions is None else max(1, min(longest, positions - max_new_tokens))
    loaded = load_prompts(data, model.template, model.tokenizer, max_length=longest, seed=seed)
    distinct = {tuple(prompt.ids): prompt.conversation for prompt in reversed(loaded.held_out or loaded.train)}
    asked = list(reversed(distinct.items()))[:num_prompts]
    return HeldOutData(
        [], [], _numbered([prompt for _, prompt in asked]), [list(ids) for ids, _ in asked], loaded.ledger
    )


def _numbered(prompts: Sequence[Conversation]) -> Prompts:
    return [(f"held-out prompt {number}", prompt) for number, prompt in enumerate(prompts, start=1)]
