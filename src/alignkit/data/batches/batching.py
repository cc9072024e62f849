"""Rows into batches: which rows meet in a batch, and how they lie in it.

`padded` and `packed` hold the very same rows; packing only lays them end to end, in as many lines as it takes, with
positions that restart at each row, so that the optimizer sees the same step without the padding. `grouped` lets rows of
similar length meet instead, for attention implementations in which packed rows would see each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler

from alignkit.choices import Batching

IGNORED = -100
FILLER = -1  # row_index of a row that only makes every process's last batch full; it carries no loss

# Rows that are sorted by length within a shuffled window this many groups wide: wide enough to leave about 3 %
# padding, narrow enough that an epoch's order stays random.
_WINDOW_GROUPS = 50


def without_fillers(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the rows that are no fillers; where there is nothing else one filler, as every process has to compute."""
    return [row for row in rows if row["row_index"] != FILLER] or rows[:1]


@dataclass(frozen=True)
class Collator:
    """Rows (`input_ids`, `labels`, `row_index`) to one batch of tensors, fillers left out.

    Attributes:
        pad_id: fills the right of short lines; never looked at when labels are masked.
        packed: lay rows end to end instead of one a line.
        one_line: with `packed`, a single line (what variable-length flash attention kernels expect); otherwise as many
            lines as the longest row's length needs, because a dense mask costs the square of a line.

    Returns of a call:
        `input_ids` [B, L], `labels` [B, L] (-100 where no loss, always at a row's first token, which nothing predicts),
        `row_index` [R] in the order the rows lie, and `attention_mask` [B, L] (padded) or `position_ids` (packed).
    """

    pad_id: int
    packed: bool = False
    one_line: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = without_fillers(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        capacity = sum(lengths) if self.one_line else max(lengths)
        lines = pack(lengths, capacity) if self.packed else [[i] for i in range(len(rows))]
        width = max(sum(lengths[i] for i in line) for line in lines)
        input_ids = torch.full((len(lines), width), self.pad_id)
        labels = torch.full((len(lines), width), IGNORED)
        positions = torch.zeros((len(lines), width), dtype=torch.long)
        attention = torch.zeros((len(lines), width), dtype=torch.long)
        for number, line in enumerate(lines):
            start = 0
            for i in line:
                end = start + lengths[i]
                input_ids[number, start:end] = torch.as_tensor(rows[i]["input_ids"])
                labels[number, start + 1 : end] = torch.as_tensor(rows[i]["labels"][1:])
                positions[number, start:end] = torch.arange(lengths[i])
                attention[number, start:end] = 1
                start = end
        row_index = torch.tensor([rows[i]["row_index"] for line in lines for i in line])
        batch = {"input_ids": input_ids, "labels": labels, "row_index": row_index}
        # A mask of ones beside restarting positions makes transformers attend across rows: packed batches have none.
        return {**batch, "position_ids": positions} if self.packed else {**batch, "attention_mask": attention}


def rows_of(batch: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, list[int], list[int]]]:
    """Read a collated batch back: (row_index, input_ids, labels) of each row, in the order they lie."""
    indices = iter(batch["row_index"].tolist())
    for number, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
        if "position_ids" in batch:
            starts = (batch["position_ids"][number] == 0).nonzero().flatten().tolist()
            ends = [*starts[1:], len(ids)]
            # Padding has position 0 throughout, so each of its tokens looks like a row of one; no row is that short.
            spans = [(a, b) for a, b in zip(starts, ends, strict=True) if b - a > 1]
        else:
            spans = [(0, int(batch["attention_mask"][number].sum()))]
        for start, end in spans:
            yield next(indices), ids[start:end], labels[start:end]


def row_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return where a collated batch holds tokens of rows, [B, L]: neither padding nor fillers, which carry no loss."""
    some = (batch["labels"] != IGNORED).any()  # a filler lies in a batch alone
    if "attention_mask" in batch:
        return batch["attention_mask"].bool() & some
    positions = batch["position_ids"]
    followed = torch.nn.functional.pad(positions[:, 1:], (0, 1)) == 1
    starts = (positions == 0) & followed  # padding has position 0 throughout; a row has two tokens at least
    return (starts | (positions > 0)) & some


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack rows by first-fit decreasing: indices into `lengths`, bin by bin; the order is a function of `lengths`."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((b for b, free in enumerate(room) if free >= lengths[i]), len(bins))
        if at == len(bins):
            bins.append([])
            room.append(capacity)
        bins[at].append(i)
        room[at] -= lengths[i]
    return bins


class EpochOrder(Sampler[int]):
    """Row numbers of an epoch, a function of seed and epoch alone, so that every process and every resume agrees.

    Args:
        lengths: tokens in each row; the last `num_fillers` are fillers and always come last.
        seed: of the shuffle.
        shuffle: reshuffle each epoch; otherwise the rows' own order, by length within each group.
        group: rows that share a step of the optimizer; 0 leaves lengths out of it, otherwise rows of similar length
            meet. All of a step's, so that it makes no difference over how many batches and processes they are spread.
        num_fillers: see `FILLER`.
    """

    def __init__(
        self, lengths: Sequence[int], *, seed: int, shuffle: bool = True, group: int = 0, num_fillers: int = 0
    ) -> None:
        self.lengths, self.seed, self.shuffle, self.group, self.num_fillers = lengths, seed, shuffle, group, num_fillers
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        num_rows = len(self.lengths) - self.num_fillers
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(num_rows, generator=generator).tolist() if self.shuffle else list(range(num_rows))
        if self.group:
            window = self.group * (_WINDOW_GROUPS if self.shuffle else 1)
            order = [i for at in range(0, num_rows, window) for i in self._alike(order[at : at + window])]
        if self.group and self.shuffle:
            whole = num_rows - num_rows % self.group
            steps = [order[at : at + self.group] for at in range(0, whole, self.group)]
            mixed = torch.randperm(len(steps), generator=generator).tolist()
            order = [i for number in mixed for i in steps[number]] + order[whole:]
        yield from order
        yield from range(num_rows, len(self.lengths))

    def _alike(self, order: list[int]) -> list[int]:
        return sorted(order, key=lambda i: -self.lengths[i])


def padding_share(
    lengths: Sequence[int], *, batch_size: int, rows_a_step: int, layout: Batching, seed: int, shuffle: bool
) -> float:
    """Compute the share of an epoch's batch positions that hold no token of a row."""
    group = rows_a_step if layout is Batching.grouped else 0
    order = list(EpochOrder(lengths, seed=seed, shuffle=shuffle, group=group))
    positions = 0
    for at in range(0, len(order), batch_size):
        batch = [lengths[i] for i in order[at : at + batch_size]]
        bins = pack(batch, max(batch)) if layout is Batching.packed else [[i] for i in range(len(batch))]
        positions += len(bins) * max(sum(batch[i] for i in line) for line in bins)
    return 1 - sum(lengths) / positions if positions else 0.0
