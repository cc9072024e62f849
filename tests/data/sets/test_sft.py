"""From files to encoded sets: what is encoded, where it lands, and that no source row is lost or counted twice."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignkit.choices import EvalGroups, Malformed, Overlength
from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.loaded import load_on_main_process
from alignkit.data.sets.section import check_data
from alignkit.data.sets.sft import SftData, SftSet, load_sft
from alignkit.errors import DataError
from families import family_tokenizer

EOS = 258  # of the byte tokenizer; ids below 256 are bytes


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that a source is `rows.jsonl:1`


@pytest.fixture
def load(byte: Any) -> Callable[..., SftData]:
    """Read a `data` section with the instruction template and the byte tokenizer."""
    template = load_template(TemplateConfig(name="instruction"), byte)

    def load(
        path: Any = "rows.jsonl", *, max_length: int = 100, seed: int = 0, num_examples: int = 0, **rest: Any
    ) -> SftData:
        data = DataConfig(path=path, **rest)
        return load_sft(data, template, byte, max_length=max_length, seed=seed, num_examples=num_examples)

    return load


def task(instruction: str, output: Any) -> dict[str, Any]:
    return {"instruction": instruction, "output": output}


def prompt(instruction: str) -> bytes:
    return b"### Instruction:\n" + instruction.encode() + b"\n\n### Response:\n"


def encoded(rows: SftSet) -> list[tuple[str, list[int], list[int]]]:
    return [(row["source"], row["input_ids"], row["labels"]) for row in rows.dataset]


def answers(rows: SftSet) -> list[str]:
    """What the loss sees of each row, without the end token."""
    return [bytes(label for label in row["labels"] if 0 <= label < 256).decode() for row in rows.dataset]


def written(data: SftData) -> list[tuple[str, str, str, str]]:
    data.ledger.write(Path("fates.jsonl"))
    lines = [json.loads(line) for line in Path("fates.jsonl").read_text().splitlines()]
    return [(line["source"], line["fate"], line["reason"], line["set"]) for line in lines]


def test_a_row_by_value(load: Callable[..., SftData], write_rows: Callable[..., Path]) -> None:
    write_rows([task("Hi", "Yo"), {"instruction": "Up", "input": "é", "output": "É"}])
    data = load()
    first, second = prompt("Hi"), b"### Instruction:\nUp\n\n### Input:\n\xc3\xa9\n\n### Response:\n"
    assert encoded(data.train) == [
        ("rows.jsonl:1", [*first, *b"Yo", EOS], [-100] * len(first) + [*b"Yo", EOS]),
        ("rows.jsonl:2", [*second, 0xC3, 0x89, EOS], [-100] * len(second) + [0xC3, 0x89, EOS]),
    ]
    assert data.train.dataset["row_index"][:] == [0, 1]
    assert data.train.lengths == [len(first) + 3, len(second) + 3]
    assert data.train.num_supervised == 6
    assert data.evals == {}
    assert [read.format for read in data.read] == ["instruction"]


def test_every_source_row_is_in_the_ledger_once_and_in_the_order_of_the_file(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    rows = [task("a", "b"), task("c", None), task("d" * 90, "e"), "text", task("f", "<|eos|>"), task("g", "h")]
    write_rows(rows)
    data = load(malformed=Malformed.drop, max_dropped=0.9)
    assert written(data) == [
        ("rows.jsonl:1", "kept", "", "train"),
        ("rows.jsonl:2", "dropped", "malformed: 'output' is null", "train"),
        ("rows.jsonl:3", "dropped", "too_long", "train"),
        ("rows.jsonl:4", "dropped", "malformed: not an object", "train"),
        ("rows.jsonl:5", "dropped", "control_tokens", "train"),
        ("rows.jsonl:6", "kept", "", "train"),
    ]
    assert data.train.sources == ["rows.jsonl:1", "rows.jsonl:6"]
    assert answers(data.train) == ["b", "h"]
    assert data.train.dataset["row_index"][:] == [0, 1]  # numbers of the rows that are left, as the trainer names them


def test_a_row_in_parts_is_one_row_of_the_ledger_and_a_row_of_the_set_for_each_part(
    write_rows: Callable[..., Path],
) -> None:
    """Qwen3's template writes an empty thought into the last answer alone, so each answer has a prompt of its own."""

    def talk(num_turns: int) -> dict[str, Any]:
        turns = [(("user", f"q{i}"), ("assistant", f"a{i}")) for i in range(num_turns)]
        return {"messages": [{"role": role, "content": words} for turn in turns for role, words in turn]}

    write_rows([talk(3), talk(1), talk(2), talk(3)])
    tokenizer = family_tokenizer("qwen3")
    template = load_template(TemplateConfig(name="native"), tokenizer)
    load = partial(load_sft, template=template, tokenizer=tokenizer, seed=0)
    data = load(DataConfig(path="rows.jsonl"), max_length=500)
    asks, thinks, end = "<|im_start|>user\n", "<think>\n\n</think>\n\n", "<|im_end|>"
    says = f"{end}\n<|im_start|>assistant\n"
    texts = [(row["source"], tokenizer.decode(row["input_ids"])) for row in data.train.dataset]
    assert texts[:4] == [
        ("rows.jsonl:1", f"{asks}q0{says}{thinks}a0{end}"),
        ("rows.jsonl:1", f"{asks}q0{says}a0{end}\n{asks}q1{says}{thinks}a1{end}"),
        ("rows.jsonl:1", f"{asks}q0{says}a0{end}\n{asks}q1{says}a1{end}\n{asks}q2{says}{thinks}a2{end}"),
        ("rows.jsonl:2", f"{asks}q0{says}{thinks}a0{end}"),
    ]
    learned = [tokenizer.decode([i for i in row["labels"] if i != -100]) for row in data.train.dataset]
    assert learned[:4] == [f"{thinks}a0{end}", f"{thinks}a1{end}", f"{thinks}a2{end}", f"{thinks}a0{end}"]
    assert Counter(data.train.sources) == {
        "rows.jsonl:1": 3,
        "rows.jsonl:2": 1,
        "rows.jsonl:3": 2,
        "rows.jsonl:4": 3,
    }
    assert data.train.dataset["row_index"][:] == list(range(9))
    assert written(data) == [
        ("rows.jsonl:1", "kept", "in 3 parts", "train"),
        ("rows.jsonl:2", "kept", "", "train"),
        ("rows.jsonl:3", "kept", "in 2 parts", "train"),
        ("rows.jsonl:4", "kept", "in 3 parts", "train"),
    ]
    assert data.ledger.counts() == {"train": {"kept: in 3 parts": 2, "kept": 1, "kept: in 2 parts": 1}}
    assert data.ledger.table().splitlines()[:5] == [
        "                  train",
        "kept                  1",
        "kept: in 3 parts      2  rows.jsonl:1, rows.jsonl:4",
        "kept: in 2 parts      1  rows.jsonl:3",
        "all rows              4",
    ]
    longest = max(data.train.lengths[3:5])  # what is cut or left out of a part is said of the row
    short = load(DataConfig(path="rows.jsonl", max_dropped=0.75), max_length=longest)
    assert short.ledger.counts() == {"train": {"dropped: too_long": 3, "kept": 1}}
    assert short.train.sources == ["rows.jsonl:2"]
    cut = load(DataConfig(path="rows.jsonl", overlength=Overlength.keep_end), max_length=longest)
    assert cut.ledger.counts() == {
        "train": {"truncated: cut_turns, in 3 parts": 2, "truncated: cut_turns, in 2 parts": 1, "kept": 1}
    }
    assert Counter(cut.train.sources) == Counter(data.train.sources)


def test_the_ledger_lists_files_in_the_order_they_are_named(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b"), task("c", "d")], "z.jsonl")
    write_rows([task("e", None), task("f", "g")], "y.jsonl")
    data = load(["z.jsonl", "y.jsonl"], malformed=Malformed.drop, max_dropped=0.5)
    assert [source for source, *_ in written(data)] == ["z.jsonl:1", "z.jsonl:2", "y.jsonl:1", "y.jsonl:2"]


def test_a_weight_repeats_rows_and_the_ledger_still_counts_each_once(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b"), task("c", "d" * 99), task("e", "f")], "twice.jsonl")
    write_rows([task(f"n{i}", "x") for i in range(10)], "half.jsonl")
    write_rows([task("last", "y")])
    weighted = [{"path": "twice.jsonl", "weight": 2}, {"path": "half.jsonl", "weight": 0.5}, "rows.jsonl"]
    data = load(weighted, max_dropped=0.2)
    seen = Counter(data.train.sources)
    assert [seen[f"twice.jsonl:{n}"] for n in (1, 2, 3)] == [2, 0, 2]
    halved = [f"half.jsonl:{n}" for n in range(1, 11) if seen[f"half.jsonl:{n}"]]
    assert len(halved) == 5
    assert seen["rows.jsonl:1"] == 1
    assert data.ledger.counts() == {"train": {"dropped: weight": 5, "kept": 8, "dropped: too_long": 1}}
    assert max(Counter(source for source, *_ in written(data)).values()) == 1
    left_out = {source for source, _, reason, _ in written(data) if reason == "weight"}
    assert left_out == {f"half.jsonl:{n}" for n in range(1, 11)} - set(halved)


def test_rows_left_out_by_weight_are_another_half_with_another_seed(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task(f"n{i}", "x") for i in range(40)])
    half = [{"path": "rows.jsonl", "weight": 0.5}]
    assert load(half).train.sources == load(half).train.sources != load(half, seed=1).train.sources


def test_a_limit_counts_over_all_sources_of_a_set(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    for name in ("a", "b", "held"):
        write_rows([task(f"{name}{i}", "x") for i in range(3)], f"{name}.jsonl")
    data = load(["a.jsonl", "b.jsonl"], eval_path="held.jsonl", limit=4)
    assert data.train.sources == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.jsonl:1"]
    assert data.evals["eval"].sources == ["held.jsonl:1", "held.jsonl:2", "held.jsonl:3"]
    assert len(written(data)) == 7


def test_a_held_out_share_takes_whole_prompts(load: Callable[..., SftData], write_rows: Callable[..., Path]) -> None:
    write_rows([task(f"question {i // 2}", f"answer {i}") for i in range(40)])  # every prompt has two answers
    data = load(eval_fraction=0.25)
    train, held_out = (
        {source.removeprefix("rows.jsonl:") for source in rows.sources} for rows in (data.train, data.evals["eval"])
    )
    assert (len(train), len(held_out)) == (30, 10)
    prompts = {number: (int(number) - 1) // 2 for number in train | held_out}
    assert not {prompts[number] for number in train} & {prompts[number] for number in held_out}
    assert {source for source, _, _, name in written(data) if name == "eval"} == {f"rows.jsonl:{n}" for n in held_out}
    assert data.ledger.counts() == {"train": {"kept": 30}, "eval": {"kept": 10}}
    assert load(eval_fraction=0.25).evals["eval"].sources == data.evals["eval"].sources
    assert load(eval_fraction=0.25, seed=1).evals["eval"].sources != data.evals["eval"].sources


def test_several_held_out_sets_have_their_own_columns_in_the_ledger(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b")])
    write_rows([task("c", "d"), task("e", "f" * 99)], "near.jsonl")
    write_rows([{"prompt": "g", "completion": "h"}], "far.jsonl")
    data = load(eval_path={"near": "near.jsonl", "far": "far.jsonl"}, max_dropped=0.5)
    assert {name: answers(rows) for name, rows in data.evals.items()} == {"near": ["d"], "far": ["h"]}
    assert data.ledger.counts() == {
        "train": {"kept": 1},
        "near": {"kept": 1, "dropped: too_long": 1},
        "far": {"kept": 1},
    }
    with pytest.raises(DataError, match=r"^data \(set near\): 1 of 2 rows were dropped \(50 %\)"):
        load(eval_path={"near": "near.jsonl"})


@pytest.mark.slow
def test_two_processes_encode_what_one_does(
    load: Callable[..., SftData], write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit.data.sets.encode_sets.WORKERS_FROM", 1)
    write_rows([task(f"number {i}", f"{i} " * (i % 40)) if i % 7 else task("x", None) for i in range(1, 1100)])
    one, two = (
        load(
            num_proc=num_proc,
            malformed=Malformed.drop,
            overlength=Overlength.keep_start,
            max_dropped=0.5,
        )
        for num_proc in (1, 2)
    )
    assert two.train.dataset.to_dict() == one.train.dataset.to_dict()
    assert written(two) == written(one)
    assert len(written(one)) == 1099


@pytest.mark.parametrize(
    ("policy", "fates", "left"),
    [
        (Overlength.drop, ["kept: ", "dropped: too_long", "dropped: too_long"], ["ok"]),
        (Overlength.keep_end, ["kept: ", "truncated: cut_start", "dropped: too_long"], ["ok", "short"]),
        (Overlength.keep_start, ["kept: ", "dropped: nothing_to_learn", "truncated: cut_end"], ["ok", "l" * 27]),
    ],
)
def test_a_row_that_is_too_long(
    load: Callable[..., SftData],
    write_rows: Callable[..., Path],
    policy: Overlength,
    fates: list[str],
    left: list[str],
) -> None:
    write_rows([task("a", "ok"), task("question " * 9, "short"), task("a", "l" * 90)])
    data = load(overlength=policy, max_length=61, max_dropped=0.9)
    assert [f"{fate}: {reason}" for _, fate, reason, _ in written(data)] == fates
    assert answers(data.train) == left
    assert all(length <= 61 for length in data.train.lengths)


def test_too_many_dropped_rows_are_told_with_reasons_and_places(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    rows = [task("a", "b") for _ in range(16)]
    rows[2:5] = [task("a", "b" * 99)] * 3
    rows[9] = task("a", 3)
    write_rows(rows)
    with pytest.raises(DataError) as caught:
        load(malformed=Malformed.drop)
    assert list(caught.value.problems) == [
        "data: 4 of 16 rows were dropped (25 %), more than data.max_dropped=0.05 allows: "
        "3 too_long (rows.jsonl:3, rows.jsonl:4, …), "
        "1 malformed: 'output' is a number where text belongs (rows.jsonl:10); "
        "raise data.max_length, choose data.overlength=keep_end, fix the malformed rows, or raise data.max_dropped"
    ]
    assert len(load(malformed=Malformed.drop, max_dropped=0.25).train.dataset) == 12


def test_no_row_left_is_an_error_whatever_the_budget(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b" * 99), task("c", "d" * 99)])
    with pytest.raises(DataError) as caught:
        load(max_dropped=1.0)
    assert list(caught.value.problems) == [
        "data: no row is left of 2: 2 too_long (rows.jsonl:1, rows.jsonl:2); "
        "raise data.max_length, choose data.overlength=keep_end"
    ]


def test_malformed_rows_stop_the_run_or_are_dropped_and_counted(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b"), task("", "c"), task("d", "e"), task("f", None)])
    with pytest.raises(DataError) as caught:
        load(max_dropped=1.0)
    assert list(caught.value.problems) == [
        "2 malformed rows: fix them, or leave them out with data.malformed=drop",
        "rows.jsonl:2: 'instruction' is empty",
        "rows.jsonl:4: 'output' is null",
    ]
    data = load(max_dropped=0.5, malformed=Malformed.drop)
    assert answers(data.train) == ["b", "e"]
    assert data.ledger.counts()["train"] == {
        "kept": 2,
        "dropped: malformed: 'instruction' is empty": 1,
        "dropped: malformed: 'output' is null": 1,
    }


def test_a_line_that_is_only_half_written_is_malformed(load: Callable[..., SftData]) -> None:
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "outp')
    with pytest.raises(DataError, match=r"^rows\.jsonl:2: "):
        load()
    data = load(malformed=Malformed.drop, max_dropped=0.5)
    assert data.train.sources == ["rows.jsonl:1"]
    assert len(written(data)) == 2


def test_sources_of_several_formats_become_one_set(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b")])
    turns = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    write_rows([{"messages": turns}], "chats.jsonl")
    write_rows([{"text": "plain words"}], "plain.jsonl")
    write_rows([{"q": "e", "a": "f"}], "own.jsonl")
    own = {"path": "own.jsonl", "format": "prompt_completion", "columns": {"prompt": "q", "completion": "a"}}
    data = load(["rows.jsonl", "chats.jsonl", "plain.jsonl", own])
    assert {read.source.path: read.format for read in data.read} == {
        "rows.jsonl": "instruction",
        "chats.jsonl": "messages",
        "plain.jsonl": "text",
        "own.jsonl": "prompt_completion",
    }
    # a text row has no prompt: all of it is learnt except its first token, which nothing predicts
    assert answers(data.train) == ["b", "d", "lain words", "f"]
    assert [row[:2] for row in written(data)] == [(source, "kept") for source in data.train.sources]


def test_samples_are_prompts_that_training_does_not_see(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b"), task("c", "d"), {"instruction": "e", "output": "f"}])
    write_rows([task("g", "h"), task("i", "j")], "held.jsonl")
    told = [
        [row.messages[0].content for row in data.examples]
        for data in (load(num_examples=2), load(num_examples=3, eval_path="held.jsonl"), load())
    ]
    assert told == [["a", "c"], ["g", "i"], []]


def test_samples_are_of_distinct_prompts(load: Callable[..., SftData], write_rows: Callable[..., Path]) -> None:
    write_rows([task("a", "1"), task("a", "2"), task("b", "3"), task("b", "4")])
    data = load([{"path": "rows.jsonl", "weight": 2}], num_examples=4)
    assert [[message.content for message in row.messages] for row in data.examples] == [["a", "1"], ["b", "3"]]


def test_fillers_make_batches_whole_and_carry_no_loss(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([task("a", "b"), task("c", "d"), task("e", "f")])
    rows = load().train
    filled = rows.filled(4)
    assert len(filled.dataset) == 4
    filler = {"input_ids": [0, 0], "labels": [-100, -100], "row_index": -1, "source": "filler"}
    assert filled.dataset[3] == filler | {"part": 1, "num_parts": 1, "template_kwargs": "{}", "cuts": "{}"}
    assert filled.num_supervised == rows.num_supervised == 6
    assert rows.filled(3) is rows


def test_what_is_wrong_with_the_section_is_told_together_and_nothing_is_read(write_rows: Callable[..., Path]) -> None:
    write_rows([task("a", "b")])
    assert check_data(DataConfig(path="rows.jsonl")) == []
    assert check_data(DataConfig(path="rows.jsonl", eval_groups=EvalGroups.prompt)) == [
        "data.eval_groups=prompt has no effect: data.eval_fraction holds no rows out",
    ]
    assert check_data(DataConfig(path="row.jsonl", eval_path={"far": "nowhere/far.jsonl"}, eval_fraction=0.5)) == [
        "data.eval_path and data.eval_fraction both name held-out rows: give one of them",
        "data.path: row.jsonl: there is no such file; did you mean 'rows.jsonl'?",
        "data.eval_path: nowhere/far.jsonl: there is no folder nowhere",
    ]


def test_one_process_shares_nothing_on_disk(load: Callable[..., SftData], write_rows: Callable[..., Path]) -> None:
    write_rows([task("a", "b")])
    assert answers(load_on_main_process(load, Path("folder"), SftData).train) == ["b"]
    assert not Path("folder").exists()


def test_rows_labelled_bad_are_left_out_and_every_column_is_told(
    load: Callable[..., SftData], write_rows: Callable[..., Path]
) -> None:
    write_rows([{**task("a", "good"), "id": 1, "label": True}, *({**task("b", "bad"), "label": 0} for _ in range(3))])
    data = load(max_dropped=0)
    assert answers(data.train) == ["good"]
    assert data.ledger.counts() == {"train": {"kept": 1, "dropped: labelled_bad": 3}}
    assert data.ledger.table().splitlines()[-2:] == [
        "columns used: instruction (prompt), output (response), label (rows to keep)",
        "columns not used: id",
    ]


def test_keys_that_a_columnar_file_fills_with_null_are_absent(load: Callable[..., SftData], tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "one", "train": True, "images": ["cat.png"]}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "two"}]
    whole = {"messages": [turns[0], thought], "tools": "[]", "label": True}
    rows = [{"messages": turns, "tools": None, "label": None}, whole]
    pq.write_table(pa.Table.from_pylist(rows), "rows.parquet")
    data = load("rows.parquet", malformed=Malformed.drop, max_dropped=1)
    assert answers(data.train) == ["two"]
    refused = "malformed: an assistant message: images are not supported: 'images'"
    assert written(data) == [("rows.parquet:1", "kept", "", "train"), ("rows.parquet:2", "dropped", refused, "train")]
