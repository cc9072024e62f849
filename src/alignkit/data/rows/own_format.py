"""A format of the user's own: a function that makes, of each row as it was read, a row of a format that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from alignkit.data.rows.values import RowError, RowUnusable, describe_type
from alignkit.user_functions import load_function

Read = TypeVar("Read")


def read_converted(
    row: dict[str, Any], spec: str, readers: Mapping[tuple[str, ...], Callable[[dict[str, Any]], Read]], returns: str
) -> Read:
    """Convert a row, and read what the function returned.

    Args:
        row: as it was read.
        spec: `module:function` or `file.py:function`.
        readers: of what may be returned, by the keys it must have; the first that fits is taken.
        returns: what may be returned, in words.

    Raises:
        RowError: the function failed, or returned something else, or a row that is wrong.
        ConfigError: it cannot be loaded.
    """
    function = load_function(spec)
    try:
        result = function(row)
    except Exception as error:  # any failure of the user's function is a mistake in their row or code
        raise RowError(f"{spec} raised {type(error).__name__}: {error}") from error
    keys = result.keys() if isinstance(result, dict) else ()
    read = next((read for needed, read in readers.items() if set(needed) <= set(keys)), None)
    if read is None:
        raise RowError(f"{spec} returned {describe_type(result)}: it must return {returns}")
    try:
        return read(result)
    except RowUnusable:
        raise
    except RowError as error:
        raise RowError(f"{spec} returned a row that is wrong: {error}") from error
