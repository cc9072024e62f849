"""The rows of one file, each with its number and, where it cannot be read, the reason."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from alignkit.config import MAX_ROW_BYTES
from alignkit.data.files.array_elements import ArrayElements
from alignkit.data.files.compressed import COMPRESSIONS, READ_ERRORS, open_file
from alignkit.data.rows.values import LONE_SURROGATE, RowError, describe_type
from alignkit.errors import DataError

EXTENSIONS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
CUT_SHORT = "the last line is cut short"

_BOM = b"\xef\xbb\xbf"
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_CHUNK_BYTES = 1 << 20  # read at once where no line ends the reading
_BATCH_ROWS = 1024  # rows of a columnar file that become Python objects at once

# Line, element or row number; the row; the reason it cannot be used, empty where there is none.
NumberedRow: TypeAlias = tuple[int, Any, str]


def file_kind(file: str) -> str:
    """Return the extension that says how to read a file, compression aside; empty where we cannot read it."""
    path = Path(file.lower())
    extension = (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix
    return extension if extension in EXTENSIONS else ""


def file_problem(file: str) -> str:
    """Say what is wrong with a file at first sight, naming it; empty where nothing is."""
    if not file_kind(file):
        return f"{file}: unknown extension; one of {', '.join(EXTENSIONS)}, plain or with {' or '.join(COMPRESSIONS)}"
    try:
        with open_file(file) as stream:
            head = stream.read(1 << 16)
    except READ_ERRORS as error:
        return f"{file}: {_unreadable(error)}"
    if not head.removeprefix(_BOM).strip():
        return f"{file}: the file is empty"
    if file_kind(file) not in (".parquet", ".arrow") and (head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head[:4]):
        return f"{file}: not UTF-8: looks like UTF-16; convert it with iconv -f utf-16 -t utf-8"
    return ""


def read_file(file: str, *, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[NumberedRow]:
    """Read the rows of a file in which `file_problem` sees none.

    Args:
        file: its name.
        max_row_bytes: a longer row is found before it is decoded. It is a problem of its own in JSON lines, Parquet and
            Arrow; of the whole file in CSV and in a JSON array, which do not show where the next row begins.

    Yields:
        The number is the 1-based line a row starts on, the 1-based element of a JSON array, or the 1-based row.

    Raises:
        DataError: the file as a whole cannot be read, naming it and, in a text, line and column.
    """
    readers = {
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
        ".arrow": _arrow,
    }
    try:
        yield from readers.get(file_kind(file), _json_lines)(file, max_row_bytes)
    except READ_ERRORS as error:
        raise DataError(f"{file}: {_unreadable(error)}") from error


def _unreadable(error: Exception) -> str:
    return f"it cannot be read: {getattr(error, 'strerror', None) or _first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """Go through lines; of one that `_is_too_long`, no more is held than shows it."""
    bom = _BOM
    while line := stream.readline(max_bytes + len(_BOM) + 2):  # and an end of two characters
        end = line
        while end and not end.endswith(b"\n"):
            end = stream.readline(_CHUNK_BYTES)
        yield line.removeprefix(bom)
        bom = b""


def _is_too_long(line: bytes, max_bytes: int) -> bool:
    return len(line) > max_bytes and len(line.rstrip(b"\r\n")) > max_bytes


def _too_long(max_bytes: int) -> str:
    return f"longer than data.max_row_bytes={max_bytes} bytes"


class _RepeatedKey(dict[str, Any]):
    """An object that gives one key twice, of which JSON would keep the last without a word."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        row = _RepeatedKey(row)
        row.key = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return row


_TOO_MUCH = "not JSON: nested too deeply, or a number of too many digits"
_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _row_problem(row: Any, *, escapes: bool) -> str:
    """What JSON lets through and we do not; `escapes`: its source holds escapes of surrogates."""
    if isinstance(row, _RepeatedKey):
        return f"the key '{row.key}' appears twice"
    if escapes:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return LONE_SURROGATE
    return ""


def _not_json(error: json.JSONDecodeError) -> str:
    return f"not JSON: {error.msg.removesuffix(' at').removesuffix(' starting').rstrip(': ')}"


def _parse_line(line: bytes) -> tuple[Any, str]:
    try:
        row = _DECODER.decode(line.decode())
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except json.JSONDecodeError as error:
        problem = _not_json(error)
    except (RecursionError, ValueError):
        problem = _TOO_MUCH
    else:
        return row, _row_problem(row, escapes=b"\\u" in line and _SURROGATE_ESCAPE.search(line) is not None)
    is_cut = not line.endswith((b"\n", b"}")) and line.lstrip().startswith(b"{")
    return None, CUT_SHORT if is_cut else problem


def _json_lines(file: str, max_bytes: int) -> Iterator[NumberedRow]:
    with open_file(file) as stream:
        for number, line in enumerate(_lines(stream, max_bytes), 1):
            if _is_too_long(line, max_bytes):
                yield number, None, _too_long(max_bytes)
            elif line.strip():
                yield number, *_parse_line(line)


def _json(file: str, max_bytes: int) -> Iterator[NumberedRow]:
    """An array of rows; or rows line by line, told by a first line that is one."""
    with open_file(file) as stream:
        first = next((line for line in _lines(stream, max_bytes) if line.strip()), b"")
    is_lines = first.lstrip().startswith(b"{") and isinstance(_parse_line(first)[0], dict)
    return _json_lines(file, max_bytes) if is_lines else _json_array(file, max_bytes)


def _chunks(stream: BinaryIO, file: str, max_bytes: int) -> Iterator[bytes]:
    """Read an array to its end, or to where an element is too long."""
    elements = ArrayElements(max_bytes)
    while chunk := stream.read(_CHUNK_BYTES):
        if elements.is_too_long(chunk):
            raise DataError(f"{file}:{elements.number}: {_too_long(max_bytes)}")
        yield chunk


def _json_array(file: str, max_bytes: int) -> Iterator[NumberedRow]:
    with open_file(file) as stream:
        data = b"".join(_chunks(stream, file, max_bytes)).removeprefix(_BOM)
    try:
        rows = _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(f"{file}:{line}:{column}: not UTF-8") from error
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")
        hint = "; the file is cut short" if is_cut else ""
        raise DataError(f"{file}:{error.lineno}:{error.colno}: {_not_json(error)}{hint}") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{file}: {_TOO_MUCH}") from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: it holds {describe_type(rows)} where an array of rows, or one row a line, belongs")
    escapes = _SURROGATE_ESCAPE.search(data) is not None
    for number, row in enumerate(rows, 1):
        yield number, row, _row_problem(row, escapes=escapes)


def _csv(file: str, max_bytes: int) -> Iterator[NumberedRow]:
    # A field is a text of any length; the limit of the module is 128 KiB.
    csv.field_size_limit((1 << 31) - 1)
    with open_file(file) as stream:
        text = _RecordText(_lines(stream, max_bytes), max_bytes)
        records = csv.reader(text, delimiter="\t" if file_kind(file) == ".tsv" else ",", strict=True)
        header: list[str] = []
        for number, record, problem in _records(records, text, file):
            if header:
                yield number, dict(zip(header, record, strict=False)), problem or _record_problem(record, header)
                continue
            header = record
            twice = [name for name, count in Counter(header).items() if count > 1]
            problem = problem or _record_problem(header, header)
            problem = problem or (f"the column '{twice[0]}' appears twice" if twice else "")
            if problem:
                raise DataError(f"{file}:{number}: {problem}")


class _RecordText(Iterator[str]):
    """The lines of one record after the other, as long as a record is not too long."""

    def __init__(self, lines: Iterator[bytes], max_bytes: int) -> None:
        self._lines, self._max_bytes, self._num_bytes = lines, max_bytes, 0

    def begin_record(self) -> None:
        self._num_bytes = 0

    def __next__(self) -> str:
        line = next(self._lines)
        self._num_bytes += len(line)
        if self._num_bytes > self._max_bytes and self._num_bytes - len(line) + len(line.rstrip()) > self._max_bytes:
            raise RowError(_too_long(self._max_bytes))
        return line.decode(errors="surrogateescape")


def _records(reader: Any, text: _RecordText, file: str) -> Iterator[tuple[int, list[str], str]]:
    """Records with the line they start on; a line that breaks the rules of quoting is one of its own."""
    while True:
        start = reader.line_num + 1
        text.begin_record()
        try:
            record = next(reader)
        except StopIteration:
            return
        except RowError as error:
            raise DataError(f"{file}:{start}: {error}") from error
        except csv.Error as error:
            is_open = str(error) == "unexpected end of data"
            if is_open and reader.line_num > start:
                raise DataError(f"{file}:{start}: a quote is opened here and never closed") from error
            yield start, [], "a quote is never closed" if is_open else f"not CSV: {str(error).partition(' - ')[0]}"
        else:
            if record:
                yield start, record, ""


def _record_problem(record: list[str], header: list[str]) -> str:
    try:
        "".join(record).encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    if len(record) != len(header):
        return f"{len(record)} fields where the header names {len(header)}"
    return ""


def _parquet(file: str, max_bytes: int) -> Iterator[NumberedRow]:
    import pyarrow
    from pyarrow import parquet

    with _seekable(file) as stream:
        try:
            yield from _batch_rows(parquet.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS), max_bytes)
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not Parquet, or damaged: {_first_line(error)}") from error


def _arrow(file: str, max_bytes: int) -> Iterator[NumberedRow]:
    """An IPC file, or an IPC stream such as `datasets` writes."""
    import pyarrow

    with _seekable(file) as stream:
        try:
            try:
                reader = pyarrow.ipc.open_file(stream)
            except pyarrow.ArrowInvalid:
                stream.seek(0)
                yield from _batch_rows(pyarrow.ipc.open_stream(stream), max_bytes)
            else:
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
                yield from _batch_rows(batches, max_bytes)
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not Arrow IPC, or damaged: {_first_line(error)}") from error


def _seekable(file: str) -> BinaryIO:
    stream = open_file(file)
    if not file.lower().endswith(COMPRESSIONS):
        return stream
    with stream:
        return io.BytesIO(stream.read())


def _batch_rows(batches: Iterable[Any], max_bytes: int) -> Iterator[NumberedRow]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row, problem in _rows(batch.slice(start, _BATCH_ROWS), max_bytes):
                number += 1
                yield number, row, problem


def _rows(batch: Any, max_bytes: int) -> Iterator[tuple[Any, str]]:
    if batch.nbytes > max_bytes:
        if batch.num_rows == 1:
            yield None, _too_long(max_bytes)
        else:  # as Python objects all of them together may be too much
            for index in range(batch.num_rows):
                yield from _rows(batch.slice(index, 1), max_bytes)
        return
    try:
        yield from ((without_filled(row), "") for row in batch.to_pylist())
    except UnicodeDecodeError:  # somewhere in the batch: go row by row to say where
        for index in range(batch.num_rows):
            try:
                yield without_filled(batch.slice(index, 1).to_pylist()[0]), ""
            except UnicodeDecodeError:
                yield None, "not UTF-8"


def without_filled(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out of the objects inside a row the keys that are null.

    A columnar schema gives every object all keys that any row has: of the arguments `{"city": …}` of one tool call and
    `{"song": …}` of another it makes two of both, each with a null that no one wrote and a model would learn to say.
    Columns themselves stay, null or not.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
