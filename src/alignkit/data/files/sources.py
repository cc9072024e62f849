"""Where rows come from: what `data.path` names, whether it is there, and its rows with their sources."""

from __future__ import annotations

import dataclasses
import glob
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from alignkit.config import MAX_ROW_BYTES
from alignkit.data.files.readers import EXTENSIONS, file_kind, file_problem, read_file, without_filled
from alignkit.data.rows.formats import FIELDS, Fields, check_format
from alignkit.errors import AlignkitError, ConfigError, DataError, as_yaml, did_you_mean, did_you_mean_path
from alignkit.user_functions import load_function

# What `datasets` writes next to the rows it saves.
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """One item of `data.path`.

    Attributes:
        path: a file, folder, glob or hub id (`org/name`, or `org/name:subset`), as the user gave it.
        setting: where it was set, such as `data.path` or `data.path[1]`.
        weight: how often each row is seen; see `repeat_counts`.
        format: `auto`, the name of a format, or `module:function`.
        columns: field to column.
        split: of a hub data set; None takes `train`.
        limit: most rows to read, malformed ones included; None reads all.
    """

    path: str
    setting: str = "data.path"
    weight: float = 1.0
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it was read.

    Attributes:
        source: `file:N`, the file as the user named it, N counted from 1: the line on which the row starts, the element
            of a JSON array, or the row of a columnar file or hub data set.
        row: normally a dict; None where it could not be read.
        problem: why the row cannot be used; empty where it can.
    """

    source: str
    row: Any
    problem: str = ""


def parse_sources(
    value: Any,
    *,
    setting: str,
    format: str,
    columns: Mapping[str, Any],
    split: str | None,
    fields: Fields = FIELDS,
) -> list[Source]:
    """Parse the sources that a setting names.

    Args:
        value: a path, or a list of paths and of `{path, weight, format, columns, split, limit}`.
        setting: its key, such as `data.path`.
        format: for items that name none of their own.
        columns: for items that name none of their own.
        split: for items that name none of their own.
        fields: of the formats there are.

    Raises:
        ConfigError: one line for each mistake.
    """
    items = value if isinstance(value, list) else [value]
    problems = check_format(format, columns, setting="data", fields=fields)
    sources = []
    if not items:
        problems.append(f"{setting} is an empty list: name a file, a folder, a glob or a hub data set")
    for index, item in enumerate(items):
        item_setting = f"{setting}[{index}]" if isinstance(value, list) else setting
        given = item if isinstance(item, dict) and isinstance(value, list) else {"path": item}
        mistakes = _mistakes(given, item_setting, fields)
        problems += mistakes
        if not mistakes:
            default = {"format": format, "columns": dict(columns), "split": split}
            own = {key: content for key, content in given.items() if content is not None}
            sources.append(Source(setting=item_setting, **{**default, **own}))
    if problems:
        raise ConfigError(*problems)
    return sources


def _mistakes(given: dict[Any, Any], setting: str, fields: Fields) -> list[str]:
    """One line for each mistake in an item of a list of sources."""
    known = [item.name for item in dataclasses.fields(Source) if item.name != "setting"]
    problems = [f"{setting}: unknown key '{key}'{did_you_mean(str(key), known)}" for key in given if key not in known]
    path, weight = given.get("path"), given.get("weight")
    if not isinstance(path, str) or not path.strip():
        name = setting if given.keys() == {"path"} else f"{setting}.path"
        problems.append(
            f"{name} is {as_yaml(path)}: it must be a path, or a list of paths or of {{{', '.join(known)}}}"
        )
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if weight is not None and not (is_number and 0 < weight < math.inf):
        problems.append(f"{setting}.weight is {as_yaml(weight)}: it must be a number above 0")
    limit = given.get("limit")
    if limit is not None and not (isinstance(limit, int) and not isinstance(limit, bool) and limit > 0):
        problems.append(f"{setting}.limit is {as_yaml(limit)}: it must be a whole number above 0")
    for key, wanted, words in (("format", str, "a name"), ("split", str, "a name"), ("columns", dict, "a mapping")):
        if given.get(key) is not None and not isinstance(given[key], wanted):
            problems.append(f"{setting}.{key} is {as_yaml(given[key])}: it must be {words}")
    return problems or check_format(
        given.get("format") or "auto", given.get("columns") or {}, setting=setting, fields=fields
    )


def check_sources(sources: Iterable[Source]) -> None:
    """Look at every source without reading it through: a mistake costs no download and no heavy import.

    Raises:
        DataError: one line for each that is missing, empty, unreadable or of an unknown kind.
    """
    problems = [problem for source in sources for problem in _problems(source)]
    if problems:
        raise DataError(*dict.fromkeys(problems))


def read_rows(source: Source, *, limit: int | None = None, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[SourceRow]:
    """Read the rows of a source, only as they are asked for.

    Args:
        source: where from.
        limit: most rows to read, malformed ones included, beside the source's own limit; None sets none.
        max_row_bytes: a longer row of a file cannot be used.

    Raises:
        DataError: the source cannot be read.
    """
    check_sources([source])
    limits = [number for number in (limit, source.limit) if number is not None]
    return islice(_rows(source, max_row_bytes), min(limits, default=None))


def repeat_counts(num_rows: int, *, weight: float, seed: int) -> list[int]:
    """Draw how often each row of a source is seen: the whole part of the weight, and once more for a share of rows.

    Args:
        num_rows: rows of the source.
        weight: 2 sees every row twice, 0.5 half of the rows (the nearest number of them) once.
        seed: of the draw.

    Returns:
        One number per row; 0 leaves the row out.
    """
    whole = int(weight)
    share = random.Random(seed).sample(range(num_rows), round((weight - whole) * num_rows))
    counts = [whole] * num_rows
    for index in share:
        counts[index] += 1
    return counts


def _rows(source: Source, max_row_bytes: int) -> Iterator[SourceRow]:
    files = files_of(source.path)
    for file in files:
        for number, row, problem in read_file(file, max_row_bytes=max_row_bytes):
            yield SourceRow(f"{file}:{number}", row, problem)
    if not files:
        for number, row in enumerate(_hub_rows(source), 1):
            yield SourceRow(f"{source.path}:{number}", without_filled(row))


def files_of(path: str) -> list[str]:
    """Return the local files that a path names, spelled as the path is; none where it is no local path."""
    if Path(path).is_file():
        return [path]
    folder = path.rstrip("/")
    found = [f"{folder}/{entry.name}" for entry in Path(path).iterdir()] if Path(path).is_dir() else []
    found = found or glob.glob(path, recursive=True)  # noqa: PTH207  # Path.glob drops a leading "./" and refuses "/…"
    return sorted(file for file in found if _holds_rows(Path(file)))


def _holds_rows(path: Path) -> bool:
    return path.is_file() and bool(file_kind(path.name)) and path.name not in _NOT_ROWS and path.name[0] not in "._"


def _problems(source: Source) -> list[str]:
    try:
        problems = _path_problems(source)
    except OSError as error:  # such as a name too long to be one, or a folder one may not list
        problems = [f"{source.path[:200]}: it cannot be read: {error.strerror}"]
    if ":" in source.format:
        try:
            load_function(source.format)
        except AlignkitError as error:
            return [*(f"{source.setting}: {problem}" for problem in problems), *error.problems]
    return [f"{source.setting}: {problem}" for problem in problems]


def _path_problems(source: Source) -> list[str]:
    path = Path(source.path)
    files = files_of(source.path)
    if files:
        problems = [problem for file in files if (problem := file_problem(file))]
        if source.split not in (None, "train"):
            problems.append(f"{source.path}: it is local and has no split '{source.split}'; only hub data sets have")
        return problems
    if path.is_dir():
        return [f"{source.path}: the folder holds no data files ({', '.join(EXTENSIONS)})"]
    if glob.has_magic(source.path):
        return [f"{source.path}: no data file matches"]
    if _HUB_ID.fullmatch(source.path) and not file_kind(path.name) and not path.parent.is_dir():
        return []
    if not path.parent.is_dir():
        return [f"{source.path}: there is no folder {path.parent}"]
    return [f"{source.path}: there is no such file{did_you_mean_path(path, path.parent.iterdir())}"]


def hub_commit(path: str, *, setting: str) -> str:
    """Return the commit of a data set of the hub that its rows are read from.

    Raises:
        DataError: it cannot be found.
    """
    import datasets

    name, _, subset = path.partition(":")
    with _explained(name, setting):
        return str(datasets.load_dataset_builder(name, subset or None).hash)


def _hub_rows(source: Source) -> Iterable[Any]:
    import datasets

    name, _, subset = source.path.partition(":")
    with _explained(name, source.setting):
        rows: Iterable[Any] = datasets.load_dataset(name, subset or None, split=source.split or "train")
    return rows


@contextmanager
def _explained(name: str, setting: str) -> Iterator[None]:
    import datasets

    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        why = " ".join(str(error).split())[:300]
        raise DataError(
            f"{setting}: no local path, and the hub data set {name} cannot be loaded "
            f"(data.split chooses its split, {name}:SUBSET a subset): {why}"
        ) from error
