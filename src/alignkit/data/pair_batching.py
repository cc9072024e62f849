"""Preference pairs into batches: a pair on one line with its prompt laid once, or each side on a line of its own.

In a causal model the prompt's states do not depend on what follows, so both responses can stand behind one copy of it:
each sees the prompt and itself, never the other, at the positions it would have alone. The scores are the same and
the prompt is paid for once (the attention mask is dense, so the kernel must take one: eager and sdpa do).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOTHING, PROMPT, CHOSEN, REJECTED = range(4)  # what a position of a line holds


@dataclass(frozen=True)
class PairCollator:
    """Pairs (`prompt_ids`, `chosen_ids`, `rejected_ids`, `row_index`, …) to one batch of tensors.

    Attributes:
        pad_id: fills the right of short lines; never looked at.
        shared_prompt: a pair is one line, prompt + chosen + rejected; else two: all chosen lines, then all rejected.

    Returns of a call, for B pairs on N lines (N = B with `shared_prompt`, else 2 B):
        `input_ids`, `position_ids`, `parts` [N, L] (`parts`: NOTHING, PROMPT, CHOSEN or REJECTED), `row_index` [B], and
        as floats [B] whichever of `margin`, `ref_chosen_logps`, `ref_rejected_logps` the rows have.
    """

    pad_id: int
    shared_prompt: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if self.shared_prompt:
            lines = [
                ((row["prompt_ids"], PROMPT), (row["chosen_ids"], CHOSEN), (row["rejected_ids"], REJECTED))
                for row in rows
            ]
        else:
            sides = (("chosen_ids", CHOSEN), ("rejected_ids", REJECTED))
            lines = [((row["prompt_ids"], PROMPT), (row[side], part)) for side, part in sides for row in rows]
        width = max(sum(len(ids) for ids, _ in line) for line in lines)
        shape = (len(lines), width)
        input_ids = torch.full(shape, self.pad_id)
        positions = torch.zeros(shape, dtype=torch.long)
        parts = torch.full(shape, NOTHING)
        for number, line in enumerate(lines):
            start, num_prompt = 0, len(line[0][0])
            for ids, part in line:
                end = start + len(ids)
                first = 0 if part == PROMPT else num_prompt
                input_ids[number, start:end] = torch.as_tensor(ids)
                positions[number, start:end] = torch.arange(first, first + len(ids))
                parts[number, start:end] = part
                start = end
        batch = {"input_ids": input_ids, "position_ids": positions, "parts": parts}
        batch["row_index"] = torch.tensor([row["row_index"] for row in rows])
        for name in ("margin", "ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows], dtype=torch.float32)
        return batch


def pairs_of(batch: Mapping[str, Tensor]) -> Iterator[tuple[int, list[int], list[int], list[int]]]:
    """Read a collated batch back: (row_index, prompt_ids, chosen_ids, rejected_ids) of each pair."""
    indices = batch["row_index"].tolist()
    for number, row_index in enumerate(indices):
        at = {CHOSEN: number, REJECTED: number + len(batch["input_ids"]) - len(indices)}
        prompt, chosen, rejected = (
            batch["input_ids"][line][batch["parts"][line] == part].tolist()
            for line, part in ((number, PROMPT), *((line, part) for part, line in at.items()))
        )
        yield row_index, prompt, chosen, rejected


def visible(parts_NL: Tensor) -> Tensor:
    """Which position may look at which, [N, 1, L, L], True where it may: what came before it, less the other response.

    A position that holds nothing sees itself, so that no row of the mask is empty (softmax of nothing is NaN).
    """
    length = parts_NL.shape[1]
    before_LL = torch.ones(length, length, dtype=torch.bool, device=parts_NL.device).tril()
    asked_NL1, seen_N1L = parts_NL[:, :, None], parts_NL[:, None, :]
    own_or_prompt_NLL = (asked_NL1 == seen_N1L) | (seen_N1L == PROMPT)
    alone_LL = torch.eye(length, dtype=torch.bool, device=parts_NL.device)
    return ((before_LL & own_or_prompt_NLL & (seen_N1L != NOTHING)) | alone_LL)[:, None]


def pair_padding_share(lines: Sequence[Sequence[int]]) -> float:
    """Share of positions that hold nothing, over batches given as the lengths of their lines."""
    held = sum(map(sum, lines))
    laid = sum(len(batch) * max(batch) for batch in lines)
    return 1 - held / laid if laid else 0.0
