"""Preference pairs into batches: a pair on one line behind one copy of its prompt, or each side on its own line.

In a causal model the prompt's states do not depend on what follows, so both responses can stand behind one copy of it:
each sees the prompt and itself, never the other, at the positions it would have alone. The scores are the same and
the prompt is computed once; the attention mask is dense, so the kernel must take one (eager and sdpa do).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from alignkit.data.batches.batching import IGNORED, without_fillers

NOTHING, PROMPT, CHOSEN, REJECTED = range(4)  # what a position of a line holds

_OPTIONAL = ("margin", "ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True)
class PairCollator:
    """Pairs (`prompt_ids`, `chosen_ids`, `rejected_ids`, `row_index`, …) to one batch of tensors, without fillers.

    The prompt's last token predicts the first one of both responses, so each side has it for itself. Where pairs have
    `chosen_masked` and `rejected_masked`, so many tokens at the start of a response carry no loss.

    Attributes:
        pad_id: fills the right of short lines; never looked at.
        shared_prompt: a pair is one line, prompt + chosen + rejected; else two: all chosen lines, then all rejected.

    Returns of a call, for B pairs on N lines (N = B with `shared_prompt`, else 2 B):
        `row_index` [B]; `input_ids`, `position_ids` [N, L]; `parts` [N, L] of NOTHING, PROMPT, CHOSEN and REJECTED;
        `shift_labels` [N, L], the token that follows where it is a response's and carries loss, else -100; and as
        floats [B] whichever of `margin`, `ref_chosen_logps` and `ref_rejected_logps` the rows have.
    """

    pad_id: int
    shared_prompt: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = without_fillers(rows)
        sides = (("chosen", CHOSEN), ("rejected", REJECTED))
        if self.shared_prompt:
            lines = [(row["prompt_ids"], [_response(row, *side) for side in sides]) for row in rows]
        else:
            lines = [(row["prompt_ids"], [_response(row, *side)]) for side in sides for row in rows]
        width = max(len(prompt) - 1 + sum(len(ids) + 1 for ids, *_ in responses) for prompt, responses in lines)
        shape = (len(lines), width)
        input_ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORED)
        positions = torch.zeros(shape, dtype=torch.long)
        parts = torch.full(shape, NOTHING)
        for number, (prompt, responses) in enumerate(lines):
            num_shared = start = len(prompt) - 1
            input_ids[number, :start] = torch.as_tensor(prompt[:-1])
            positions[number, :start] = torch.arange(start)
            parts[number, :start] = PROMPT
            for ids, num_masked, part in responses:
                end = start + 1 + len(ids)
                input_ids[number, start] = prompt[-1]
                input_ids[number, start + 1 : end] = torch.as_tensor(ids)
                labels[number, start + num_masked : end - 1] = input_ids[number, start + 1 + num_masked : end]
                positions[number, start:end] = torch.arange(num_shared, num_shared + end - start)
                parts[number, start:end] = part
                start = end
        batch = {
            "row_index": torch.tensor([row["row_index"] for row in rows]),
            "input_ids": input_ids,
            "position_ids": positions,
            "parts": parts,
            "shift_labels": labels,
        }
        given = [name for name in _OPTIONAL if name in rows[0]]
        return batch | {name: torch.tensor([row[name] for row in rows], dtype=torch.float32) for name in given}


def _response(row: Mapping[str, Any], side: str, part: int) -> tuple[list[int], int, int]:
    """The ids of a side, how many of them carry no loss at its start, and its number."""
    return row[f"{side}_ids"], row.get(f"{side}_masked", 0), part


Side: TypeAlias = tuple[list[int], list[int]]


def pairs_of(batch: Mapping[str, Tensor]) -> Iterator[tuple[int, list[int], Side, Side]]:
    """Read a collated batch back: row_index, prompt_ids, and the ids and labels of both sides of each pair."""
    ids, parts, indices = batch["input_ids"], batch["parts"], batch["row_index"].tolist()
    num_apart = len(ids) - len(indices)  # lines between a pair's two sides: none where they share one
    for number, row_index in enumerate(indices):
        prompt = ids[number][parts[number] == PROMPT].tolist()
        last, chosen = _side(batch, number, CHOSEN)
        _, rejected = _side(batch, number + num_apart, REJECTED)
        yield row_index, [*prompt, last], chosen, rejected


def _side(batch: Mapping[str, Tensor], line: int, part: int) -> tuple[int, Side]:
    """The prompt's last token, and the ids and labels of the response behind it; a label stands one place before."""
    own = batch["parts"][line] == part
    last, *ids = batch["input_ids"][line][own].tolist()
    return last, (ids, batch["shift_labels"][line][own].tolist()[:-1])


def by_side(values_NL: Tensor, parts_NL: Tensor, num_pairs: int) -> Tensor:
    """Return the values of the lines as [2 B, L], all chosen sides, then all rejected ones, zero outside the side."""
    if len(values_NL) == num_pairs:
        values_NL, parts_NL = values_NL.repeat(2, 1), parts_NL.repeat(2, 1)
    chosen, rejected = parts_NL.chunk(2)
    own = torch.cat([chosen == CHOSEN, rejected == REJECTED])
    return values_NL.masked_fill(~own, 0)


def visible(parts_NL: Tensor) -> Tensor:
    """Return which position may attend to which, [N, 1, L, L]: what came before it, except the other response.

    A position that holds nothing sees itself, so that no row of the mask is empty (softmax of nothing is NaN).
    """
    length = parts_NL.shape[1]
    before_LL = torch.ones(length, length, dtype=torch.bool, device=parts_NL.device).tril()
    asking_NL1, seen_N1L = parts_NL[:, :, None], parts_NL[:, None, :]
    own_or_prompt_NLL = (asking_NL1 == seen_N1L) | (seen_N1L == PROMPT)
    alone_LL = torch.eye(length, dtype=torch.bool, device=parts_NL.device)
    return ((before_LL & own_or_prompt_NLL & (seen_N1L != NOTHING)) | alone_LL)[:, None]
