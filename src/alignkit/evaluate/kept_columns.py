"""The columns that a run was trained with, for further files with the same columns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from alignkit.config import DataConfig
from alignkit.data.files.sources import parse_sources, read_rows
from alignkit.data.rows.formats import Fields
from alignkit.data.rows.prompts import PROMPT_FIELDS, detect_prompts
from alignkit.data.rows.row_kind import RowKind
from alignkit.errors import AlignkitError, DataError
from alignkit.home import expand_home
from alignkit.runs.template import run_columns

Data = TypeVar("Data", bound=DataConfig)

logger = logging.getLogger(__name__)

_NUM_LOOKED_AT = 10


def with_kept_columns(
    data: Data, names: Sequence[str], kind: RowKind[Any], *, given: Mapping[str, Any] = MappingProxyType({})
) -> Data:
    """Return the section with the columns that its file needs, as `kept_columns`; as it is where some were named."""
    if data.columns or data.format != "auto" or not isinstance(data.path, str):
        return data
    return replace(data, columns=kept_columns(data.path, names, kind.detect, kind.fields, given=given))


def kept_columns(
    path: str | Path | None,
    names: Sequence[str],
    detect: Callable[..., str],
    fields: Fields,
    *,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Return the columns with which the training of a model read rows like those of a file.

    They are for rows that cannot be read without: what fits a format as it is, is read so. What is used is logged.

    Args:
        path: of the file; there may be none.
        names: of the models; the first one that is a run whose columns fit is taken.
        detect: tells the format of rows, as `detect_format`.
        fields: of the formats.
        given: columns of the command's own `data.columns`, which are taken first where they fit.

    Returns:
        A map from field to column; empty where none is needed, or none fits.
    """
    kept = [("data.columns", dict(given))]
    kept += [(f"the training of {name}", run_columns(Path(expand_home(name)))) for name in names]
    if path is None or not any(columns for _, columns in kept):
        return {}
    try:
        (source,) = parse_sources(str(path), setting="", format="auto", columns={}, split=None, fields=fields)
        rows = [row.row for row in read_rows(source, limit=_NUM_LOOKED_AT) if isinstance(row.row, dict)]
    except (AlignkitError, ValueError):
        return {}  # who reads the file says what is wrong with it
    found = dict.fromkeys(key for row in rows for key in row)
    if not rows or _fits(detect, found, rows[0], {}):
        return {}
    for where, columns in kept:
        there = {field: column for field, column in columns.items() if str(column).split(".")[0] in found}
        if there and _fits(detect, found, rows[0], there):
            words = ", ".join(f"{field}: {column}" for field, column in there.items())
            logger.info("%s: columns {%s}, as in %s", path, words, where)
            return there
    return {}


def kept_prompt_columns(path: Path | None, names: Sequence[str], *, format: str) -> Any:
    """Return the columns of a file of prompts, as `kept_columns`; empty where its format was named."""
    if path is None or path.suffix == ".txt" or format != "auto":
        return {}
    return kept_columns(path, names, detect_prompts, PROMPT_FIELDS)


def _fits(detect: Callable[..., str], found: dict[str, None], first: Any, columns: dict[str, Any]) -> bool:
    try:
        detect(found, first, columns=columns)
    except DataError:
        return False
    return True
