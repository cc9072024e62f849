from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from alignkit.data.files.readers import file_problem, read_file
from alignkit.data.rows.formats import to_conversation
from alignkit.errors import DataError

Write = Callable[[str, "str | bytes"], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a file into a fresh current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str | bytes) -> str:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def read(file: str) -> list[tuple[int, Any, str]]:
    assert file_problem(file) == ""
    return list(read_file(file))


def failure(file: str) -> str:
    with pytest.raises(DataError) as caught:
        read(file)
    return str(caught.value)


def test_json_lines_count_blank_lines_and_windows_ends(write: Write) -> None:
    file = write("a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\\u2028\xe2\x80\xa8"}\n[2]\n"x"')
    assert read(file) == [(1, {"a": 1}, ""), (4, {"a": "\u2028\u2028"}, ""), (5, [2], ""), (6, "x", "")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a" 1}', "not JSON: Expecting ':' delimiter"),
        (b"{'a': 1}", "not JSON: Expecting property name enclosed in double quotes"),
        (b'{"a": "x\ty"}', "not JSON: Invalid control character"),
        (b'{"a": "\\x"}', "not JSON: Invalid \\escape"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data"),
        (b'{"a": "caf\xe9"}', "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\\ud83d"}', "half a character (a lone surrogate)"),
        (b'{"\\udc00": 1}', "half a character (a lone surrogate)"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' appears twice"),
        (b"[" * 100_000, "not JSON: nested too deeply, or a number of too many digits"),
        (b"1" * 5000, "not JSON: nested too deeply, or a number of too many digits"),
    ],
)
def test_a_bad_line_is_one_row_among_good_ones(write: Write, line: bytes, problem: str) -> None:
    rows = read(write("a.jsonl", b'{"a": 0}\n' + line + b'\n{"a": "\\ud83d\\ude00"}\n'))
    assert (rows[0], rows[2]) == ((1, {"a": 0}, ""), (3, {"a": "\U0001f600"}, ""))
    assert (rows[1][0], rows[1][2]) == (2, problem)


@pytest.mark.parametrize(
    "tail", [b'{"a', b'{"a": "caf\xc3', b'{"a": {"b": 1', b'{"a": "\\u00', b'{"a": tru', b'{"a": 1, ']
)
def test_a_half_written_last_line(write: Write, tail: bytes) -> None:
    rows = read(write("a.jsonl", b'{"a": 0}\n' + tail))
    assert rows == [(1, {"a": 0}, ""), (2, None, "the last line is cut short")]


def test_a_last_line_that_is_wrong_is_not_called_cut(write: Write) -> None:
    assert read(write("a.jsonl", b'{"a": 0}\nhello'))[1] == (2, None, "not JSON: Expecting value")
    assert read(write("b.jsonl", b'{"a": "caf\xe9"}'))[0] == (1, None, "not UTF-8")


def test_a_json_array(write: Write) -> None:
    content = '\ufeff[{"a": 1},\n\n {"a": "\\ud83d"}, 3, {"b": 1, "b": 2}, {"a": NaN}]'
    rows = read(write("a.json", content))
    assert rows[:2] == [(1, {"a": 1}, ""), (2, {"a": "\ud83d"}, "half a character (a lone surrogate)")]
    assert rows[2:4] == [(3, 3, ""), (4, {"b": 2}, "the key 'b' appears twice")]
    assert rows[4][0] == 5
    assert str(rows[4][1]) == "{'a': nan}"
    assert read(write("empty.json", "[]")) == []


def test_json_lines_in_a_json_file(write: Write) -> None:
    assert read(write("a.json", '\n{"a": 1}\n\n{"a": \n')) == [
        (2, {"a": 1}, ""),
        (4, None, "not JSON: Expecting value"),
    ]
    assert read(write("one.json", '{"a": 1}')) == [(1, {"a": 1}, "")]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hello", "a.json:1:1: not JSON: Expecting value"),
        ('[{"a": 1},\n {"a" 2}]', "a.json:2:7: not JSON: Expecting ':' delimiter"),
        ('[{"a": 1},\n {"a": "x', "a.json:2:8: not JSON: Unterminated string; the file is cut short"),
        ('[{"a": 1},\n', "a.json:2:1: not JSON: Expecting value; the file is cut short"),
        (b'[{"a": 1},\n{"a": "caf\xe9"}]', "a.json:2:11: not UTF-8"),
        (b'[{"a": "caf\xe9"}]', "a.json:1:12: not UTF-8"),
        ('{\n "data": []\n}', "a.json: it holds an object where an array of rows, or one row a line, belongs"),
        ('"text"', "a.json: it holds text where an array of rows, or one row a line, belongs"),
        ("[" * 100_000, "a.json: not JSON: nested too deeply, or a number of too many digits"),
    ],
)
def test_a_json_file_that_is_none(write: Write, content: str | bytes, text: str) -> None:
    assert failure(write("a.json", content)) == text


def test_csv_rows_start_where_they_start(write: Write) -> None:
    content = '\ufeffa,b\n1,"two\nlines"\n\n"x ""y""",z\r\n4,5'
    assert read(write("a.csv", content)) == [
        (2, {"a": "1", "b": "two\nlines"}, ""),
        (5, {"a": 'x "y"', "b": "z"}, ""),
        (6, {"a": "4", "b": "5"}, ""),
    ]
    assert read(write("a.tsv", 'a\tb\n"1,\t"\t2\n')) == [(2, {"a": "1,\t", "b": "2"}, "")]
    assert read(write("header.csv", "a,b\n")) == []


def test_a_csv_field_of_any_length(write: Write) -> None:
    assert len(read(write("a.csv", "a\n" + "x" * 200_000))[0][1]["a"]) == 200_000


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"1", "1 fields where the header names 2"),
        (b"1,2,3", "3 fields where the header names 2"),
        (b"1,caf\xe9", "not UTF-8"),
        (b'1,"a"b', "not CSV: ',' expected after '\"'"),
        (b"1,a\rb", "not CSV: new-line character seen in unquoted field"),
    ],
)
def test_a_bad_csv_line_is_one_row_among_good_ones(write: Write, line: bytes, problem: str) -> None:
    rows = read(write("a.csv", b"a,b\n0,0\n" + line + b"\n2,2\n"))
    assert (rows[0], rows[2]) == ((2, {"a": "0", "b": "0"}, ""), (4, {"a": "2", "b": "2"}, ""))
    assert (rows[1][0], rows[1][2]) == (3, problem)


def test_an_open_quote_in_csv(write: Write) -> None:
    assert read(write("a.csv", 'a,b\n0,"0'))[0] == (2, {}, "a quote is never closed")
    # It swallows the rows after it, so leaving out "one row" would leave out many.
    assert failure(write("b.csv", 'a,b\n0,"0\n1,1\n2,2\n')) == "b.csv:2: a quote is opened here and never closed"


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"a,b,a\n1,2,3\n", "a.csv:1: the column 'a' appears twice"),
        (b"\ncaf\xe9,b\n1,2\n", "a.csv:2: not UTF-8"),
        (b'"a"b\n1\n', "a.csv:1: not CSV: ',' expected after '\"'"),
    ],
)
def test_mistakes_in_a_csv_header(write: Write, header: bytes, text: str) -> None:
    assert failure(write("a.csv", header)) == text


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8))
def test_csv_comes_back_with_true_lines(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
    expected = []
    writer.writerow(["a", "b"])
    for a, b in cells:
        expected.append((stream.getvalue().count("\n") + 1, {"a": a, "b": b}, ""))
        writer.writerow([a, b])
    path.write_bytes(stream.getvalue().encode())
    assert list(read_file(str(path))) == expected


TABLE = pa.table({"text": ["a", None, "c"], "turns": [[{"n": 1}], [], None]})
ROWS = [
    (1, {"text": "a", "turns": [{"n": 1}]}, ""),
    (2, {"text": None, "turns": []}, ""),
    (3, {"text": "c", "turns": None}, ""),
]


def packed(table: pa.Table, kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    if kind == "parquet":
        parquet.write_table(table, sink, row_group_size=2)
    else:
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_columnar_files(write: Write, kind: str, compression: str) -> None:
    content = packed(TABLE, kind)
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    assert read(write(f"a.{'parquet' if kind == 'parquet' else 'arrow'}{compression}", compress(content))) == ROWS


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = [
    [call("weather", city="Rome"), call("stop")],
    [call("play", song="Moon", options={"loop": True})],
    [call("play", song="Sun", options={"speed": 2}), call("pick", of=["a", None, "b"])],
]
TOLD = [
    {"messages": [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": calls}]}
    for calls in CALLS
]


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_a_columnar_file_adds_no_argument_to_a_call(write: Write, kind: str) -> None:
    """Its schema has every key that any row has, and fills the others with null."""
    assert "'song': None" in str(pa.Table.from_pylist(TOLD).to_pylist())
    file = write(f"a.{'parquet' if kind == 'parquet' else 'arrow'}", packed(pa.Table.from_pylist(TOLD), kind))
    rows = [row for _, row, _ in read(file)]
    assert rows == TOLD
    assert [to_conversation(row, "messages", {}).messages[1].tool_calls for row in rows] == [tuple(c) for c in CALLS]


def test_a_null_that_someone_wrote_stays(write: Write) -> None:
    row = {"a": None, "calls": [call("play", song=None)]}
    assert read(write("a.jsonl", json.dumps(row))) == [(1, row, "")]
    columns = pa.table({"a": pa.array([None, "x"]), "b": [1, 2]})
    assert read(write("a.parquet", packed(columns, "parquet")))[0][1] == {"a": None, "b": 1}


def test_bad_text_in_a_columnar_file_is_one_row(write: Write) -> None:
    offsets, text = pa.array([0, 2, 4, 5], pa.int32()).buffers()[1], pa.py_buffer(b"ok\xff\xfex")
    table = pa.table({"a": pa.StringArray.from_buffers(3, offsets, text)})
    assert read(write("a.arrow", packed(table, "file"))) == [
        (1, {"a": "ok"}, ""),
        (2, None, "not UTF-8"),
        (3, {"a": "x"}, ""),
    ]


def test_many_rows_keep_their_numbers(write: Write) -> None:
    rows = read(write("a.parquet", packed(pa.table({"n": range(1, 3001)}), "parquet")))
    assert [number for number, _, _ in rows] == [row["n"] for _, row, _ in rows] == list(range(1, 3001))


@pytest.mark.parametrize("kind", ["parquet", "stream"])
@pytest.mark.parametrize("keep", [slice(0, -100), slice(20, None)])
def test_a_damaged_columnar_file(write: Write, kind: str, keep: slice) -> None:
    file, name = ("a.parquet", "Parquet") if kind == "parquet" else ("a.arrow", "Arrow IPC")
    table = pa.table({"text": ["some words"] * 500})
    text = failure(write(file, packed(table, kind)[keep]))
    assert text.startswith(f"{file}: not {name}, or damaged: ") or text.startswith(f"{file}: it cannot be read: ")
    assert "\n" not in text


LINES = b"".join(b'{"n": %d}\n' % n for n in range(1, 2001))
ZIPPED = gzip.compress(LINES, mtime=0)  # a time in it would make every process name its tests otherwise


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_compressed_lines_in_one_frame_or_several(write: Write, compress: Callable[[bytes], bytes]) -> None:
    end = ".gz" if compress is gzip.compress else ".zst"
    half = len(LINES) // 2
    for content in (compress(LINES), compress(LINES[:half]) + compress(LINES[half:])):
        assert [row["n"] for _, row, _ in read(write("a.jsonl" + end, content))] == list(range(1, 2001))
        assert len(read(write("a.JSONL" + end.upper(), content))) == 2000


def test_a_json_array_in_zst(write: Write) -> None:
    assert read(write("a.json.zst", zstandard.compress(json.dumps([{"a": 1}]).encode()))) == [(1, {"a": 1}, "")]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jsonl.gz", ZIPPED[:-20], "Compressed file ended before the end-of-stream marker was reached"),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-20], "the compressed file is cut short"),
        ("a.jsonl.gz", b'{"a": 1}\n', "Not a gzipped file (b'{\"')"),
        ("a.jsonl.zst", b'{"a": 1}\n', "zstd decompressor error: Unknown frame descriptor"),
    ],
)
def test_a_damaged_compressed_file_is_seen_at_once(write: Write, name: str, content: bytes, text: str) -> None:
    assert file_problem(write(name, content)) == f"{name}: it cannot be read: {text}"


def test_a_compressed_file_cut_far_in_is_seen_while_reading(write: Write) -> None:
    lines = b"".join(b'{"n": %d}\n' % (n * n) for n in range(20_000))
    for name, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        assert failure(write(name, compress(lines)[:-20])).startswith(f"{name}: it cannot be read: ")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", "hello", "a.txt: unknown extension; one of .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, "),
        ("a.gz", "hello", "a.gz: unknown extension; "),
        ("a.jsonl", "", "a.jsonl: the file is empty"),
        ("a.json", "\ufeff \n\n", "a.json: the file is empty"),
        ("a.parquet", "", "a.parquet: the file is empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "a.csv.gz: the file is empty"),
        ("a.json.zst", zstandard.compress(b"\n"), "a.json.zst: the file is empty"),
        *(
            (
                "a.json",
                '[{"a": 1}]'.encode(code),
                "a.json: not UTF-8: looks like UTF-16; convert it with iconv -f utf-16",
            )
            for code in ("utf-16", "utf-16-le", "utf-16-be")
        ),
    ],
)
def test_problems_at_first_sight(write: Write, name: str, content: str | bytes, problem: str) -> None:
    assert file_problem(write(name, content)).startswith(problem)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    assert file_problem(f"{tmp_path}/a.json") == f"{tmp_path}/a.json: it cannot be read: Is a directory"
