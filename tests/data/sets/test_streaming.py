"""Rows read while a model trains: the same rows as when all are read first, without keeping them."""

import json
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from alignkit.choices import Batching, Malformed, Overlength
from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.batches.batching import Collator
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.sets import streaming
from alignkit.data.sets.ledger import LedgerRow
from alignkit.data.sets.sft import SftData, load_sft
from alignkit.data.sets.streaming import RunningLedger, Stream, check_streaming
from alignkit.errors import DataError

MAX_LENGTH = 60


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that a source is `rows.jsonl:1`


@pytest.fixture
def template(byte: Any) -> Template:
    return load_template(TemplateConfig(name="instruction"), byte)


@pytest.fixture
def stream(byte: Any, template: Template) -> Callable[..., Stream]:
    def make(path: Any = "rows.jsonl", *, seed: int = 0, **rest: Any) -> Stream:
        data = DataConfig(path=path, streaming=True, **{"shuffle": False, **rest})
        return Stream(data, template, byte, max_length=MAX_LENGTH, seed=seed)

    return make


@pytest.fixture
def load(byte: Any, template: Template) -> Callable[..., SftData]:
    def load(path: Any = "rows.jsonl", **rest: Any) -> SftData:
        return load_sft(DataConfig(path=path, **rest), template, byte, max_length=MAX_LENGTH, seed=0)

    return load


def task(number: int, output: Any = "yes") -> dict[str, Any]:
    return {"instruction": f"n{number}", "output": output}


def tasks(num: int) -> list[dict[str, Any]]:
    return [task(number) for number in range(1, num + 1)]


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    """The lines that rows came from."""
    return [int(row["source"].rpartition(":")[2]) for row in rows]


def seen(stream: Stream, num: int) -> list[dict[str, Any]]:
    return list(islice(stream.rows(), num))


def fates(path: str) -> list[tuple[str, str, str, str]]:
    return [tuple(json.loads(line).values()) for line in Path(path).read_text().splitlines()]  # type: ignore[misc]  # JSON has no types


def test_rows_and_ledger_are_those_of_data_read_at_once(
    stream: Callable[..., Stream], load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task(1), task(2, None), task(3, "x" * 99), task(4), task(5, "<|eos|>")], "first.jsonl")
    write_rows([{"prompt": "n1", "completion": f"{'long ' * i}"} for i in range(1, 12)], "second.jsonl")
    path = [{"path": "first.jsonl", "weight": 2}, "second.jsonl"]
    rules = {"malformed": Malformed.drop, "max_dropped": 0.9, "overlength": Overlength.keep_start, "limit": 15}
    data = load(path, **rules)
    data.ledger.write(Path("whole.jsonl"))
    trained = ("input_ids", "labels", "source")  # the other columns are for inspect, which reads rows at once
    rows = [{name: row[name] for name in trained} for row in data.train.dataset]

    streamed = stream(path, **rules)
    streamed.begin(Path("rows.jsonl"), [])
    twice = [{name: row[name] for name in trained} for row in seen(streamed, 2 * len(rows))]
    assert twice == rows + rows
    assert sorted(fates("rows.jsonl")) == sorted(fates("whole.jsonl"))
    assert [source for source, *_ in fates("rows.jsonl")] == [
        *(f"first.jsonl:{n}" for n in range(1, 6)),
        *(f"second.jsonl:{n}" for n in range(1, 11)),
    ]
    assert streamed.ledger
    assert streamed.ledger.counts() == data.ledger.counts()
    assert streamed.ledger.table() == data.ledger.table()


def test_a_row_by_value(stream: Callable[..., Stream], write_rows: Callable[..., Path]) -> None:
    write_rows([{"instruction": "Hi", "output": "Yo"}])
    prompt = list(b"### Instruction:\nHi\n\n### Response:\n")
    (row,) = islice(stream().dataset(), 1)
    assert row == {
        "input_ids": [*prompt, *b"Yo", 258],
        "labels": [-100] * len(prompt) + [*b"Yo", 258],
        "row_index": 0,
        "source": "rows.jsonl:1",
    }


def test_every_pass_has_its_own_order_of_the_same_rows(
    stream: Callable[..., Stream], write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tasks(40))
    monkeypatch.setattr(streaming, "BUFFER", 8)
    first, second = (numbers(seen(stream(shuffle=True), 80))[at : at + 40] for at in (0, 40))
    assert sorted(first) == sorted(second) == list(range(1, 41))
    assert first != second
    assert numbers(seen(stream(shuffle=True), 40)) == first
    assert numbers(seen(stream(shuffle=True, seed=1), 40)) != first
    assert all(number <= place + 8 for place, number in enumerate(first, 1)), "no row comes before it was read"
    assert sum(a > b for a, b in pairwise(first)) > 10


def test_a_limit_counts_over_all_sources(stream: Callable[..., Stream], write_rows: Callable[..., Path]) -> None:
    write_rows(tasks(3), "a.jsonl")
    write_rows(tasks(3), "b.jsonl")
    rows = seen(stream(["a.jsonl", "b.jsonl"], limit=4), 5)
    assert [row["source"] for row in rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1", "a.jsonl:1"]


def test_the_first_rows_of_each_source_are_looked_at(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows(tasks(1005), "a.jsonl")
    write_rows([{"prompt": "p", "completion": "c"}] * 3, "b.jsonl")
    write_rows(tasks(2), "held.jsonl")
    data = load(["a.jsonl", "b.jsonl"], streaming=True, eval_path="held.jsonl")
    assert data.ledger.counts() == {"train": {"kept": 1003}, "eval": {"kept": 2}}
    assert [read.line() for read in data.read] == [
        "a.jsonl: 1,000 rows read as instruction",
        "b.jsonl: 3 rows read as prompt_completion",
        "held.jsonl: 2 rows read as instruction",
    ]


def test_a_malformed_row_stops_the_stream_where_it_stands(
    stream: Callable[..., Stream], write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 4)
    write_rows([*tasks(5), task(6, None), task(7), task(8, 3)])
    rows = stream().rows()
    assert numbers(list(islice(rows, 4))) == [1, 2, 3, 4]
    with pytest.raises(DataError) as caught:
        next(rows)
    assert caught.value.problems == (
        "2 malformed rows: fix them, or leave them out with data.malformed=drop",
        "rows.jsonl:6: 'output' is null",
        "rows.jsonl:8: 'output' is a number where text belongs",
    )


def test_the_budget_is_enforced_as_rows_pass_once_a_thousand_have(
    stream: Callable[..., Stream], write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 100)
    too_long = {*range(1, 100, 2), *range(1101, 1201)}  # half of the first hundred rows, all of the twelfth
    write_rows([task(n, "x" * 99 if n in too_long else "yes") for n in range(1, 2001)])
    streamed = stream(max_dropped=0.06)
    streamed.begin(None, [LedgerRow("held.jsonl:1", "dropped", "too_long", "eval")])
    rows = streamed.rows()
    assert numbers(list(islice(rows, 1050)))[-1] == 1100, "half of the first hundred is no reason to stop yet"
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value) == (
        "data: 150 of the 1200 rows read so far were dropped (12.5 %), more than data.max_dropped=0.06 allows: "
        "150 too_long (rows.jsonl:1, rows.jsonl:3, …); fix or leave out such rows, or raise data.max_dropped"
    )


def test_nothing_grows_with_the_data(
    stream: Callable[..., Stream], write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = RunningLedger(Path("fates.jsonl"))
    for start in range(0, 900, 100):
        ledger.enter(
            LedgerRow(f"a:{n}", "dropped", "too_long") if n % 9 == 0 else LedgerRow(f"a:{n}", "kept")
            for n in range(start + 1, start + 101)
        )
    assert ledger.counts() == {"train": {"kept": 800, "dropped: too_long": 100}}
    assert [row.source for row in ledger.rows] == ["a:1", "a:2", "a:3", "a:9", "a:18", "a:27"]
    assert [place for place, *_ in fates("fates.jsonl")] == [f"a:{n}" for n in range(1, 901)]

    monkeypatch.setattr(streaming, "REMEMBERED", 4)
    write_rows(tasks(10))
    streamed = stream()
    rows = seen(streamed, 6)
    assert [row["row_index"] for row in rows] == [0, 1, 2, 3, 0, 1]
    assert streamed.sources == ["rows.jsonl:5", "rows.jsonl:6", "rows.jsonl:3", "rows.jsonl:4"]


def test_what_is_looked_at_before_the_run_begins_is_not_in_its_ledger(
    stream: Callable[..., Stream], write_rows: Callable[..., Path]
) -> None:
    write_rows(tasks(3))
    streamed = stream()
    next(iter(streamed.dataset()))
    streamed.begin(Path("fates.jsonl"), [LedgerRow("held.jsonl:1", "kept", set="eval")])
    seen(streamed, 7)
    assert fates("fates.jsonl") == [
        ("held.jsonl:1", "kept", "", "eval"),
        ("rows.jsonl:1", "kept", "", "train"),
        ("rows.jsonl:2", "kept", "", "train"),
        ("rows.jsonl:3", "kept", "", "train"),
    ]


def test_a_pass_without_a_row_is_an_end(stream: Callable[..., Stream], write_rows: Callable[..., Path]) -> None:
    write_rows([task(1, "x" * 99)])
    with pytest.raises(DataError, match=r"^data: no row is left of a whole pass over data\.path$"):
        next(stream().rows())


def test_two_processes_share_the_batches_of_one(stream: Callable[..., Stream], write_rows: Callable[..., Path]) -> None:
    write_rows(tasks(11))

    def batches(num_processes: int, index: int) -> list[list[int]]:
        loader = DataLoader(stream(shuffle=True).dataset(), 8 // num_processes, collate_fn=Collator(pad_id=256))
        shared = prepare_data_loader(
            loader, num_processes=num_processes, process_index=index, put_on_device=False, dispatch_batches=False
        )
        return [batch["row_index"].tolist() for batch in islice(shared, 4)]

    alone, first, second = batches(1, 0), batches(2, 0), batches(2, 1)
    assert alone == [list(range(at, at + 8)) for at in (0, 8, 16, 24)]
    assert [a + b for a, b in zip(first, second, strict=True)] == alone


def test_what_a_stream_can_do_is_not_refused() -> None:
    data = DataConfig(path=[{"path": "a.jsonl", "weight": 2}], eval_path="b.jsonl", batching=Batching.packed)
    assert check_streaming(data, {"max_steps": 10, "eval_strategy": "steps"}, keep_best=True) == []


@pytest.mark.parametrize(
    ("given", "train", "line"),
    [
        ({}, {}, "needs train.max_steps: the number of rows is not known, so neither is that of steps"),
        ({}, {"max_steps": -1}, "needs train.max_steps: the number of rows is not known, so neither is that of steps"),
        ({"eval_path": None}, {}, "needs held-out rows of their own: give data.eval_path"),
        (
            {"eval_path": None, "eval_fraction": 0.1},
            {},
            "no share can be held out of rows that are not all known: give data.eval_path instead",
        ),
        (
            {"batching": Batching.grouped},
            {},
            "data.batching=grouped needs every row's length: take auto, packed or padded",
        ),
        ({"num_proc": 2}, {}, "rows are encoded by the process that trains: leave data.num_proc at 1"),
        (
            {},
            {"dataloader_num_workers": 1},
            "rows are read by the process that trains: leave train.dataloader_num_workers out",
        ),
        (
            {},
            {"save_strategy": "epoch"},
            "an epoch has no end: give train.save_strategy=steps and train.save_steps",
        ),
    ],
)
def test_what_needs_every_row_is_refused_with_the_way_out(
    given: dict[str, Any], train: dict[str, Any], line: str
) -> None:
    data = DataConfig(**{"path": "a.jsonl", "eval_path": "b.jsonl", **given})
    train = train if "max_steps" in line else {"max_steps": 10, **train}
    (problem,) = check_streaming(data, train, keep_best=False)
    assert problem.removeprefix("data.streaming=true").removeprefix(":").strip() == line


def test_keeping_the_best_needs_evaluations_by_steps() -> None:
    (problem,) = check_streaming(DataConfig(path="a", eval_path="b"), {"max_steps": 10}, keep_best=True)
    assert problem == ("data.streaming=true: an epoch has no end: give train.eval_strategy=steps and train.eval_steps")


def test_a_share_of_a_source_is_refused() -> None:
    data = DataConfig(path=["a.jsonl", {"path": "b.jsonl", "weight": 1.5}], eval_path="c.jsonl")
    assert check_streaming(data, {"max_steps": 10}, keep_best=False) == [
        "data.path[1].weight is 1.5: data.streaming=true takes whole numbers only, because a share of the rows can be "
        "drawn only when all are known"
    ]
