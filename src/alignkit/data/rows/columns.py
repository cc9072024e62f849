"""A row's fields: each a column, or a place in nested data, under its own name or another that the user gave."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from alignkit.data.rows.values import RowError, checked_text, describe_type
from alignkit.errors import DataError, did_you_mean

_MISSING = object()


def check_columns(found: Collection[str], columns: Mapping[str, str]) -> None:
    """Refuse a column mapping that points at columns the first rows do not have.

    Args:
        found: the columns of the first rows.
        columns: field to column, or to a path such as `instances.0.input`.

    Raises:
        DataError: one line for each column that is not there.
    """
    missing = [(f, c) for f, c in columns.items() if c not in found and c.partition(".")[0] not in found]
    if missing:
        raise DataError(
            *(
                f"data.columns.{field}: there is no column '{column}'"
                + (did_you_mean(column.partition(".")[0], found) or f"; the columns are {', '.join(sorted(found))}")
                for field, column in missing
            )
        )


def check_fields(columns: Mapping[str, str], format: str, fields: tuple[Collection[str], Collection[str]]) -> None:
    """Refuse a column mapping for a field that rows of the detected format do not have.

    Args:
        columns: field to column.
        format: a name.
        fields: those its rows must have, and those they may have.

    Raises:
        DataError: one line for each field.
    """
    needed, optional = fields
    unused = [field for field in columns if field not in (*needed, *optional)]
    if unused:
        raise DataError(
            *(
                f"data.columns.{field} has no effect: the rows are read as {format}, which has no field '{field}'; "
                "leave it out, or name another format with data.format"
                for field in unused
            )
        )


def fields_of(found: Collection[str], columns: Mapping[str, str]) -> set[str]:
    """Return the fields there are: a mapped one counts as present, its column as used up.

    Raises:
        DataError: a mapping points at a column that is not there.
    """
    check_columns(found, columns)
    return (set(found) - used_up(columns)) | set(columns)


def used_up(columns: Mapping[str, str]) -> set[str]:
    """Return the columns that a mapping takes: they mean nothing more under their own names."""
    return {name for column in columns.values() for name in (column, column.partition(".")[0])}


def describe_columns(found: Collection[str], first_row: Any) -> str:
    """List the columns, and what each holds in the first row."""
    row = first_row if isinstance(first_row, dict) else {}
    return (
        ", ".join(f"{name} ({describe_type(row[name])})" if name in row else name for name in sorted(found)) or "none"
    )


def field_value(row: dict[str, Any], field: str, columns: Mapping[str, str]) -> tuple[Any, str]:
    """Return a field's value and the column it came from.

    Raises:
        RowError: the row has no such field.
    """
    column = columns.get(field, field)
    if column in row:
        return row[column], column
    value = _look_up(row, column)
    if value is _MISSING:
        top = column.partition(".")[0]
        raise RowError(f"no field '{column}'{'' if top in row else did_you_mean(top, map(str, row))}")
    return value, column


def has_field(row: dict[str, Any], field: str, columns: Mapping[str, str]) -> bool:
    """Tell whether the row has the field at all, be it null."""
    return _look_up(row, columns.get(field, field)) is not _MISSING


def optional_text(row: dict[str, Any], field: str, columns: Mapping[str, str]) -> str:
    """Return a field's text, empty where it is absent or null: columnar files fill gaps with null."""
    column = columns.get(field, field)
    value = row[column] if column in row else look_up(row, column)
    return "" if value is None else checked_text(value, column)


def look_up(row: dict[str, Any], column: str) -> Any:
    """Return what a column or a path holds; None where it is absent or null."""
    value = _look_up(row, column)
    return None if value is _MISSING else value


def _look_up(row: dict[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value
