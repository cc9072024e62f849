"""A row longer than `data.max_row_bytes` is found before it is decoded, and before it is whole in memory."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from alignkit.choices import Malformed
from alignkit.config import DataConfig
from alignkit.data.files.array_elements import ArrayElements
from alignkit.data.files.readers import NumberedRow, read_file
from alignkit.data.rows.row_kind import CONVERSATIONS
from alignkit.data.sets.items import parse_sets, read_sets
from alignkit.data.sets.ledger import Ledger
from alignkit.errors import DataError

PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
TEXT = "caf\u00e9 " * 20  # 140 bytes


def read(file: Path, max_row_bytes: int) -> list[NumberedRow]:
    return list(read_file(str(file), max_row_bytes=max_row_bytes))


def is_refused(file: Path, max_row_bytes: int) -> bool:
    try:
        rows = read(file, max_row_bytes)
    except DataError as error:
        return str(error) == f"{file}:2: longer than data.max_row_bytes={max_row_bytes} bytes"
    assert [number for number, _, _ in rows][:2] in ([1, 2], [2, 3])
    problems = [problem for _, _, problem in rows]
    assert problems in (["", "", ""], ["", f"longer than data.max_row_bytes={max_row_bytes} bytes", ""])
    return problems[1] != ""


LINE = json.dumps({"text": TEXT}, ensure_ascii=False).encode()


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("packed", ["", *PACK])
def test_a_json_line_is_one_row_among_good_ones(tmp_path: Path, packed: str, end: bytes) -> None:
    file = tmp_path / f"a.jsonl{packed}"
    content = end.join([b"\xef\xbb\xbf" + b'{"text": "a"}', LINE, b'{"text": "b"}'])
    file.write_bytes(PACK.get(packed, bytes)(content))
    assert not is_refused(file, len(LINE))
    assert is_refused(file, len(LINE) - 1)
    assert is_refused(file, 20)


def test_a_json_array_says_which_element(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'[{"text": "a"},' + LINE + b',{"text": "b"}]')
    assert not is_refused(file, len(LINE))
    assert is_refused(file, len(LINE) - 1)


def test_a_csv_record_over_several_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'text\na\n"' + b"line\n" * 20 + b'"\nb\n')
    assert not is_refused(file, 102)
    with pytest.raises(DataError, match=r"a\.csv:3: longer than data\.max_row_bytes=101 bytes"):
        read(file, 101)


@pytest.mark.parametrize("extension", ["parquet", "arrow"])
def test_a_columnar_row_is_one_row_among_good_ones(tmp_path: Path, extension: str) -> None:
    file, table = tmp_path / f"a.{extension}", pa.table({"text": ["a", "x" * 10_000, "b"]})
    if extension == "parquet":
        parquet.write_table(table, file)
    else:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    assert not is_refused(file, 11_000)
    assert is_refused(file, 9_999)


ELEMENTS = st.recursive(
    st.text('a"\\[]{},é', max_size=6) | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\,]', max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(st.lists(ELEMENTS, min_size=1, max_size=6), st.integers(1, 7), st.integers(1, 40))
def test_elements_are_measured_wherever_the_chunks_end(elements: list[Any], step: int, max_bytes: int) -> None:
    written = [json.dumps(element).encode() for element in elements]
    content = b"[" + b",".join(written) + b"]"
    scan = ArrayElements(max_bytes)
    found = any(scan.is_too_long(content[at : at + step]) for at in range(0, len(content), step))
    longest = max(len(element) for element in written)
    if longest <= max_bytes - 2 or longest > max_bytes + 2:  # a comma or a bracket may count
        assert found == (longest > max_bytes)
    if found:
        first = next(number for number, element in enumerate(written, 1) if len(element) > max_bytes - 2)
        assert scan.number >= first


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "%s"}'),
        ("a.json", b'[{"text": "%s"}]'),
        ("a.json", b'{"text":\n "%s"}'),
        ("a.csv", b"text\n%s\n"),
        ("a.csv", b'text\n"%s'),
    ],
)
@pytest.mark.parametrize("packed", PACK)
def test_a_huge_row_is_never_in_memory(tmp_path: Path, name: str, content: bytes, packed: str) -> None:
    file = tmp_path / f"{name}{packed}"
    file.write_bytes(PACK[packed](content.replace(b"%s", b"x" * 60_000_000)))
    tracemalloc.start()
    try:
        problem = str([row[2] for row in read(file, 1 << 20)])
    except DataError as error:
        problem = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "longer than data.max_row_bytes=1048576 bytes" in problem
    assert peak < 30_000_000  # of Zstandard, 8 MB may be unpacked at once


def test_a_row_that_is_too_long_is_dropped_like_any_malformed_one(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "a"}\n' + LINE + b"\n")
    data = DataConfig(str(file), max_row_bytes=100)
    ledger = Ledger()
    items, _ = parse_sets(read_sets(data, CONVERSATIONS, seed=0), CONVERSATIONS, ledger, malformed=Malformed.drop)
    assert [item.source for item in items["train"]] == [f"{file}:1"]
    assert [row.reason for row in ledger.rows if row.fate == "dropped"] == [
        "malformed: longer than data.max_row_bytes=100 bytes"
    ]
    with pytest.raises(DataError, match="longer than"):
        parse_sets(read_sets(data, CONVERSATIONS, seed=0), CONVERSATIONS, Ledger(), malformed=Malformed.stop)
