"""What a batch of rows is while tokens are drawn: their tokens, the logits behind them and their cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from alignkit.sampling.cache import BatchCache
from alignkit.sampling.draw import upload


@dataclass(slots=True)
class Columns:
    """Rows that end in the same, newest column.

    Attributes:
        ids_BS: tokens; -1 where a row has none.
        logits_BV: of each row's next token.
        cache: of the columns.
    """

    ids_BS: Tensor
    logits_BV: Tensor
    cache: BatchCache

    @property
    def width(self) -> int:
        return self.ids_BS.shape[-1]

    def on_device(self, slots: Sequence[int]) -> Tensor:
        """Return the numbers of slots as a tensor beside the others."""
        return upload(torch.tensor(slots), self.ids_BS.device)

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all rows but those in these slots; one that is named twice becomes two."""
        slots_K = self.on_device(slots)
        self.ids_BS, self.logits_BV = self.ids_BS[slots_K], self.logits_BV[slots_K]
        self.cache.keep(slots_K)

    def copy(self, slots: Sequence[int]) -> Columns:
        """Return the rows in these slots as rows of their own."""
        slots_K = self.on_device(slots)
        return Columns(self.ids_BS[slots_K], self.logits_BV[slots_K], self.cache.copy(slots_K))

    def put(self, slots: Sequence[int], other: Columns) -> None:
        """Make the rows of others, of no more columns, the rows in these slots."""
        slots_K = self.on_device(slots)
        self.ids_BS[slots_K] = pad(other.ids_BS, (self.width - other.width, 0), value=-1)
        self.logits_BV[slots_K] = other.logits_BV
        self.cache.put(slots_K, other.cache)

    def narrow(self, width: int) -> None:
        """Keep the newest columns only."""
        if width < self.width:
            self.ids_BS = self.ids_BS[:, -width:]
            self.cache.narrow(width)
