"""Items through an encoder: in chunks, lazily, and each in the ledger once."""

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pytest

from alignkit.data.sets.encode_sets import COPIES, EncodeOutcome, encode_sets, record_outcomes, record_sets, to_datasets
from alignkit.data.sets.items import SourcedItem
from alignkit.data.sets.ledger import Ledger, LedgerRow
from alignkit.errors import MemoryShortage


@dataclass(frozen=True)
class Word:
    text: str
    notes: tuple[str, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cuts: Mapping[str, int] = field(default_factory=dict)

    def prompt_key(self) -> str:
        return self.text


def items(*texts: str) -> list[SourcedItem[Word]]:
    return [SourcedItem(f"words.txt:{number}", Word(text)) for number, text in enumerate(texts, start=1)]


def whole(words: list[Word]) -> list[EncodeOutcome[Word]]:
    return [EncodeOutcome([word]) for word in words]


def test_items_reach_the_encoder_in_chunks_and_only_when_asked_for() -> None:
    sizes = []

    def encode(words: list[Word]) -> list[EncodeOutcome[Word]]:
        sizes.append(len(words))
        return whole(words)

    outcomes = encode_sets({"train": items(*"a" * 1100), "eval": items("b")}, encode, num_proc=1)
    assert sizes == []
    assert len(list(islice(outcomes["train"], 513))) == 513
    assert sizes == [512, 512]
    assert len(list(outcomes["train"])) == 1100 - 513
    assert sizes == [512, 512, 76]
    assert [outcome.parts for outcome in outcomes["eval"]] == [[Word("b")]]


def test_each_row_is_recorded_once_and_those_left_are_given_on() -> None:
    rows = items("kept", "cut", "dropped")
    copies = [SourcedItem(row.source, row.item, is_copy=True) for row in rows]
    word = Word("kept", notes=("odd",))
    outcomes = [EncodeOutcome([word]), EncodeOutcome([Word("cu")], "cut_end"), EncodeOutcome([], "too_long")]
    ledger = Ledger()
    kept = list(record_outcomes([*rows, *copies], outcomes * 2, "eval", ledger))
    assert kept == [("words.txt:1", word), ("words.txt:2", Word("cu"))] * 2
    assert ledger.rows == [
        LedgerRow("words.txt:1", "kept", "", "eval"),
        LedgerRow("words.txt:2", "truncated", "cut_end", "eval"),
        LedgerRow("words.txt:3", "dropped", "too_long", "eval"),
    ]
    assert ledger.notes == {"odd": 2, COPIES: 2}


def test_a_set_becomes_a_data_set_with_numbers_and_sources() -> None:
    def columns(words: list[Word]) -> dict[str, pa.Array]:
        return {"text": pa.array([word.text for word in words], pa.string())}

    rows = {"train": items("a", "b"), "eval": items()}
    outcomes: dict[str, Iterator[EncodeOutcome[Word]]] = encode_sets(rows, whole, num_proc=1)
    datasets = to_datasets(record_sets(rows, outcomes, Ledger()), columns)
    assert datasets["train"].to_list() == [
        {"text": "a", "row_index": 0, "template_kwargs": "{}", "cuts": "{}", "source": "words.txt:1"},
        {"text": "b", "row_index": 1, "template_kwargs": "{}", "cuts": "{}", "source": "words.txt:2"},
    ]
    assert datasets["eval"].column_names == ["text", "row_index", "template_kwargs", "cuts", "source"]
    assert len(datasets["eval"]) == 0


def end_from_outside(_: object) -> list[EncodeOutcome[Word]]:
    assert os.getpgid(0) == os.getpid()  # what a terminal signals is another group
    os.kill(os.getpid(), signal.SIGKILL)
    return []


@pytest.mark.slow
def test_a_worker_that_the_system_ends_is_told_with_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit.data.sets.encode_sets.WORKERS_FROM", 1)
    outcomes = encode_sets({"train": items("a", "b")}, end_from_outside, num_proc=2)
    with pytest.raises(MemoryShortage, match=r"^data\.num_proc: a process that .* was ended .*: lower it from 2"):
        list(outcomes["train"])
