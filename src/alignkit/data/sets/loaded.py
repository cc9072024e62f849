"""What a loader returns: the encoded rows of each set, and what became of all the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets, load_from_disk

from alignkit.data.batches.batching import FILLER
from alignkit.data.rows.conversation import Conversation
from alignkit.data.sets.items import Item, SourcedItem
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.source_read import SourceRead


@dataclass
class EncodedSet:
    """Encoded rows of one set.

    Attributes:
        dataset: a row each; of its columns four are `row_index` (the row's number), `source` (`file:N`),
            `template_kwargs` (its own arguments of the template, as JSON) and `cuts` (see `Encoding`, as JSON).
    """

    dataset: Dataset

    filler: ClassVar[Mapping[str, Any]]  # a row that carries no loss

    @property
    def sources(self) -> list[str]:
        """`file:N` of each row."""
        return list(self.dataset["source"])

    def part(self, index: int) -> tuple[int, int]:
        """Return which part of its source row a row is, and of how many."""
        return 1, 1

    def template_kwargs(self, index: int) -> dict[str, Any]:
        """Return a row's own arguments of the template."""
        kwargs: dict[str, Any] = json.loads(self.dataset[index]["template_kwargs"])
        return kwargs

    def cuts(self, index: int) -> dict[str, int]:
        """Return where tokens of a row were left out."""
        cuts: dict[str, int] = json.loads(self.dataset[index]["cuts"])
        return cuts

    @property
    def num_fillers(self) -> int:
        """Rows at the end that are fillers."""
        return list(self.dataset["row_index"]).count(FILLER)

    def filled(self, multiple: int) -> Self:
        """Return the same rows followed by as few fillers as make their number a multiple of `multiple`.

        With several processes the last batch of an epoch would else repeat rows; a filler carries no loss.
        """
        missing = -len(self.dataset) % multiple
        if not missing:
            return self
        row = {**self.filler, "row_index": FILLER, "source": "filler", "template_kwargs": "{}", "cuts": "{}"}
        columns = {name: [row[name]] * missing for name in self.dataset.column_names}
        fillers = Dataset.from_dict(columns, features=self.dataset.features)
        return replace(self, dataset=concatenate_datasets([self.dataset, fillers]))


Set = TypeVar("Set", bound=EncodedSet)
Data = TypeVar("Data", bound="EncodedData[Any]")


@dataclass
class EncodedData(Generic[Set]):
    """Everything that was read.

    Attributes:
        sets: encoded rows by set name: `train`, then the held-out ones (`eval` where there is one). With
            `data.streaming`, `train` has the first rows of each source, and the others come as training goes.
        ledger: the fate of every source row.
        read: what was read of each source.
        examples: a few held-out conversations (training ones where nothing is held out), for samples; each is a prompt
            with its response, and no two have one prompt.
    """

    sets: dict[str, Set]
    ledger: Ledger
    read: list[SourceRead] = field(default_factory=list)
    examples: list[Conversation] = field(default_factory=list)

    set_type: ClassVar[type[EncodedSet]]

    @property
    def train(self) -> Set:
        """The rows to train on."""
        return self.sets["train"]

    @property
    def evals(self) -> dict[str, Set]:
        """The held-out rows by set name."""
        return {name: rows for name, rows in self.sets.items() if name != "train"}

    @classmethod
    def of_datasets(cls, datasets: Mapping[str, Dataset]) -> Self:
        """Wrap encoded rows, by set name, that another process read; its ledger is not known."""
        sets: dict[str, Any] = {name: cls.set_type(dataset) for name, dataset in datasets.items()}
        return cls(sets, Ledger())


def example_items(items: Mapping[str, list[SourcedItem[Item]]]) -> list[Item]:
    """Return the items from which examples are taken, no two of one prompt: held-out ones where there are some."""
    of_set = next((of_set for name, of_set in items.items() if name != "train"), items["train"])
    by_prompt: dict[str, Item] = {}
    for item in of_set:
        by_prompt.setdefault(item.item.prompt_key(), item.item)
    return list(by_prompt.values())


def load_on_main_process(load: Callable[[], Data], folder: Path, data_type: type[Data]) -> Data:
    """Read and encode in the main process alone; the others map the rows it wrote, and the files are then removed.

    Args:
        load: reads the data.
        folder: one that every process sees.
        data_type: what `load` returns.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())  # unasked, it sees no other process on a CPU
    if state.num_processes == 1:
        return load()
    if state.is_main_process:
        data = load()
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed here
        for position, (name, rows) in enumerate(data.sets.items()):
            # Every process must evaluate the sets in one order, and a folder lists its files in no order.
            rows.dataset.save_to_disk(str(folder / f"{position:06d} {name}"))
        state.wait_for_everyone()
    else:
        state.wait_for_everyone()
        paths: list[Any] = sorted(folder.iterdir())
        datasets = {path.name.partition(" ")[2]: load_from_disk(str(path), keep_in_memory=True) for path in paths}
        data = data_type.of_datasets(datasets)
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder)
    return data
