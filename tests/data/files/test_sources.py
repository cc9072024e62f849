from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.files.sources import Source, SourceRow, check_sources, parse_sources, read_rows, repeat_counts
from alignkit.errors import ConfigError, DataError, as_yaml

FIXTURES = Path(__file__).parents[1] / "fixtures"  # about twenty rows each, in the shapes of well-known data sets


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse(value: Any, **kwargs: Any) -> list[Source]:
    return parse_sources(value, **{"setting": "data.path", "format": "auto", "columns": {}, "split": None, **kwargs})


def mistakes(value: Any, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(value, **kwargs)
    return caught.value.problems


def problems(*paths: str, **kwargs: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        check_sources([Source(path, **kwargs) for path in paths])
    return caught.value.problems


def test_one_path() -> None:
    assert parse("a.jsonl", format="instruction", columns={"output": "answer"}, split="test") == [
        Source("a.jsonl", "data.path", 1.0, "instruction", {"output": "answer"}, "test")
    ]


def test_several_paths_with_settings_of_their_own() -> None:
    own = {
        "path": "b",
        "weight": 2,
        "format": "messages",
        "columns": {"messages": "turns"},
        "split": "test",
        "limit": 9,
    }
    assert parse(["a.jsonl", own, {"path": "c", "weight": None}], format="text", columns={"text": "t"}) == [
        Source("a.jsonl", "data.path[0]", 1.0, "text", {"text": "t"}, None),
        Source("b", "data.path[1]", 2, "messages", {"messages": "turns"}, "test", 9),
        Source("c", "data.path[2]", 1.0, "text", {"text": "t"}, None),
    ]


@pytest.mark.parametrize("value", [None, 3, "", " ", {"path": "a.json"}])
def test_what_is_no_path(value: Any) -> None:
    wanted = "it must be a path, or a list of paths or of {path, weight, format, columns, split, limit}"
    assert mistakes(value, setting="data.eval_path") == (f"data.eval_path is {as_yaml(value)}: {wanted}",)


def test_mistakes_are_told_together() -> None:
    items = [
        {"path": "a", "wieght": 2, "weight": 0},
        {"weight": True, "columns": "output", "split": 3, "format": ["text"]},
        {"path": "b", "weight": float("nan")},
        {"path": "c", "format": "sharegtp"},
        {"path": "d", "format": "text", "columns": {"txt": "t"}},
    ]
    assert mistakes(items, format="instrction") == (
        "data.format: unknown format 'instrction'; did you mean 'instruction'?",
        "data.path[0]: unknown key 'wieght'; did you mean 'weight'?",
        "data.path[0].weight is 0: it must be a number above 0",
        "data.path[1].path is null: it must be a path, or a list of paths or of {path, weight, format, columns, split, "
        "limit}",
        "data.path[1].weight is true: it must be a number above 0",
        "data.path[1].format is ['text']: it must be a name",
        "data.path[1].split is 3: it must be a name",
        "data.path[1].columns is 'output': it must be a mapping",
        "data.path[2].weight is nan: it must be a number above 0",
        "data.path[3].format: unknown format 'sharegtp'; did you mean 'sharegpt'?",
        "data.path[4].columns: no format has a field 'txt'; did you mean 'text'?",
    )
    assert mistakes([]) == ("data.path is an empty list: name a file, a folder, a glob or a hub data set",)


def test_every_missing_or_broken_source_is_named(folder: Path) -> None:
    (folder / "alpaca.json").write_text('[{"a": 1}]')
    (folder / "empty.jsonl").write_text("")
    (folder / "words.txt").write_text("hello")
    (folder / "wide.csv").write_text("a,b\n1,2\n", encoding="utf-16")
    (folder / "bare").mkdir()
    (folder / "below").mkdir()
    (folder / "below" / "rows.jsonl").write_text('{"a": 1}')
    found = problems(
        "below/row.jsonl",
        "alpaca.jsn",
        "empty.jsonl",
        "bare",
        "words.txt",
        "wide.csv",
        "gone/a.json",
        "b*.json",
        "alpaca.json",
    )
    assert found == (
        "data.path: below/row.jsonl: there is no such file; did you mean 'below/rows.jsonl'?",
        "data.path: alpaca.jsn: there is no such file; did you mean 'alpaca.json'?",
        "data.path: empty.jsonl: the file is empty",
        "data.path: bare: the folder holds no data files (.json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow)",
        "data.path: words.txt: unknown extension; one of .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, plain "
        "or with .gz or .zst",
        "data.path: wide.csv: not UTF-8: looks like UTF-16; convert it with iconv -f utf-16 -t utf-8",
        "data.path: gone/a.json: there is no folder gone",
        "data.path: b*.json: no data file matches",
    )


def test_a_missing_path_in_a_folder_that_exists_is_no_hub_id(folder: Path) -> None:
    (folder / "data").mkdir()
    check_sources([Source("tatsu-lab/alpaca"), Source("openai/gsm8k:main", split="test")])
    assert problems("data/alpaca", "alpaca", "a/b/c") == (
        "data.path: data/alpaca: there is no such file",
        "data.path: alpaca: there is no such file",
        "data.path: a/b/c: there is no folder a/b",
    )


def test_a_whole_text_given_for_a_path(folder: Path) -> None:
    text = '{"instruction": "' + "a" * 5000 + '"}'
    assert problems(text) == (f"data.path: {text[:200]}: it cannot be read: File name too long",)


def test_local_files_have_no_splits_but_train(folder: Path) -> None:
    (folder / "a.json").write_text("[{}]")
    check_sources([Source("a.json", split="train")])
    assert problems("a.json", split="test", setting="data.path[0]") == (
        "data.path[0]: a.json: it is local and has no split 'test'; only hub data sets have",
    )


def test_a_function_that_cannot_be_loaded_is_told_with_the_rest(folder: Path) -> None:
    assert problems("gone.json", format="gone.py:rows") == (
        "data.path: gone.json: there is no such file",
        "data.format: gone.py:rows: there is no file gone.py",
    )


def test_rows_carry_the_path_as_it_was_given(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    expected = [("1", {"a": 1}, ""), ("3", None, "not JSON: Expecting value")]
    for path in ("a.jsonl", "./a.jsonl", str(folder / "a.jsonl"), f"../{folder.name}/a.jsonl"):
        assert list(read_rows(Source(path))) == [SourceRow(f"{path}:{n}", row, why) for n, row, why in expected]


def test_a_folder_and_a_glob_are_read_in_order(folder: Path) -> None:
    data = folder / "data"
    (data / "more").mkdir(parents=True)
    (data / "b.json").write_text('[{"n": 2}]')
    (data / "a.csv").write_text("n\n1\n")
    (data / "c.jsonl.gz").write_bytes(gzip.compress(b'{"n": 3}\n', mtime=0))
    (data / "more/d.json").write_text('[{"n": 4}]')
    for name in ("README.md", "dataset_info.json", "state.json", ".hidden.json", "_part.json"):
        (data / name).write_text("{}")

    def numbers(path: str) -> list[tuple[str, int]]:
        return [(row.source, int(row.row["n"])) for row in read_rows(Source(path))]

    listed = [("data/a.csv:2", 1), ("data/b.json:1", 2), ("data/c.jsonl.gz:1", 3)]
    assert numbers("data") == numbers("data/") == numbers("data/*") == listed
    assert numbers("./data")[0] == ("./data/a.csv:2", 1)
    assert numbers("data/**/*.json") == [("data/b.json:1", 2), ("data/more/d.json:1", 4)]
    assert numbers(f"{folder}/data/[bc]*") == [(f"{folder}/data/b.json:1", 2), (f"{folder}/data/c.jsonl.gz:1", 3)]


def test_a_file_whose_name_looks_like_a_glob(folder: Path) -> None:
    (folder / "a[1].json").write_text('[{"n": 1}]')
    assert [row.source for row in read_rows(Source("a[1].json"))] == ["a[1].json:1"]


def test_a_folder_saved_by_datasets(folder: Path) -> None:
    datasets.Dataset.from_list([{"n": 1}, {"n": 2}]).save_to_disk("saved")
    assert [row.row for row in read_rows(Source("saved"))] == [{"n": 1}, {"n": 2}]


def test_the_limit_counts_every_row_and_reads_no_further(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"n": 1}\nbroken\n{"n": 3}\n')
    (folder / "b.json").write_text("not JSON")
    assert [row.source for row in read_rows(Source("*.json*"), limit=2)] == ["a.jsonl:1", "a.jsonl:2"]
    with pytest.raises(DataError, match=r"^b.json:1:1: not JSON: Expecting value$"):
        list(read_rows(Source("*.json*"), limit=4))


def test_reading_a_missing_source_is_refused_as_checking_it(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^data.path: a.json: there is no such file$"):
        read_rows(Source("a.json"))


HUB = """
from alignkit.data.files.sources import Source, read_rows
from alignkit.errors import DataError

print([(row.source, row.row, row.problem) for row in read_rows(Source("org/rows"))])
for source in (Source("org/rows", split="tset"), Source("org/gone", "data.path[1]")):
    try:
        list(read_rows(source))
    except DataError as error:
        print(error)
"""


def test_a_hub_data_set(folder: Path) -> None:
    """Rows of one that was loaded before, as found without a network; and what is refused."""
    cached = folder / "cache/datasets/org___rows/default/0.0.0" / ("a" * 40)
    datasets.Dataset.from_list([{"n": 1, "of": {"a": 1}}, {"n": 2, "of": {"b": 2}}]).save_to_disk("saved")
    cached.mkdir(parents=True)
    (folder / "saved/data-00000-of-00001.arrow").rename(cached / "rows-train.arrow")
    split = {"name": "train", "num_bytes": 16, "num_examples": 2, "dataset_name": "rows"}
    (cached / "dataset_info.json").write_text(
        json.dumps({"dataset_name": "rows", "config_name": "default", "splits": {"train": split}})
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=True)
    rows, split_text, gone = done.stdout.splitlines()
    assert rows == ("[('org/rows:1', {'n': 1, 'of': {'a': 1}}, ''), ('org/rows:2', {'n': 2, 'of': {'b': 2}}, '')]")
    refusal = (
        "no local path, and the hub data set {0} cannot be loaded (data.split chooses its split, {0}:SUBSET a subset): "
    )
    assert split_text.startswith(f'data.path: {refusal.format("org/rows")}Unknown split "tset". Should be one of [')
    assert gone.startswith(f"data.path[1]: {refusal.format('org/gone')}")


def test_a_mistake_costs_no_heavy_import(folder: Path) -> None:
    code = (
        "import sys; from alignkit.data.files.sources import Source, check_sources\n"
        "check_sources([Source('org/name'), Source('a.jsonl')])\n"
        "print({'torch', 'datasets', 'pyarrow', 'pandas', 'numpy', 'zstandard'} & set(sys.modules))"
    )
    (folder / "a.jsonl").write_text("{}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_weights_by_value() -> None:
    assert repeat_counts(4, weight=1, seed=0) == [1, 1, 1, 1]
    assert repeat_counts(4, weight=2, seed=0) == [2, 2, 2, 2]
    assert sorted(repeat_counts(4, weight=0.5, seed=0)) == [0, 0, 1, 1]
    assert sorted(repeat_counts(4, weight=2.25, seed=0)) == [2, 2, 2, 3]
    assert len({tuple(repeat_counts(20, weight=0.5, seed=seed)) for seed in range(20)}) == 20


@given(st.integers(0, 300), st.floats(0.01, 5), st.integers(0, 99))
def test_weights_give_the_nearest_number_of_rows(num_rows: int, weight: float, seed: int) -> None:
    counts = repeat_counts(num_rows, weight=weight, seed=seed)
    assert counts == repeat_counts(num_rows, weight=weight, seed=seed)
    assert len(counts) == num_rows
    assert abs(sum(counts) - weight * num_rows) <= 0.5 + 1e-9
    assert set(counts) <= {int(weight), int(weight) + 1}


@pytest.mark.parametrize(("name", "num_rows"), [("instructions.json", 21), ("pairs.json", 20), ("tasks.jsonl", 20)])
def test_files_as_data_sets_have_them(name: str, num_rows: int) -> None:
    path = str(FIXTURES / name)
    rows = list(read_rows(*parse(path)))
    assert [row.source for row in rows] == [f"{path}:{number}" for number in range(1, num_rows + 1)]
    text = Path(path).read_text(encoding="utf-8")
    whole = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    assert [row.row for row in rows] == whole
    assert not any(row.problem for row in rows)
