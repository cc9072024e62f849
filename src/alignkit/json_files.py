"""JSON that a run, a model folder or an earlier command left behind, which may have been damaged since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

from alignkit.errors import DamagedFile, as_yaml

Kind = TypeVar("Kind")
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number"}


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        DamagedFile: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged, it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged: it holds no JSON object")
    return content


def read_objects(path: Path) -> list[dict[str, Any]]:
    """Read a file that holds one JSON object a line; empty lines are none.

    Raises:
        DamagedFile: it cannot be read, or a line holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged, it is no UTF-8: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedFile(f"{path}:{number} is damaged, it is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DamagedFile(f"{path}:{number} is damaged: it holds no JSON object")
        rows.append(row)
    return rows


def get(content: dict[str, Any], key: str, kind: type[Kind], path: Path) -> Kind:
    """Return a value of an object that was read, of the kind that it must have; a whole number is a number, too.

    Raises:
        DamagedFile: it is missing or of another kind.
    """
    value: Any = content.get(key)
    wanted: Any = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (kind in (int, float) and isinstance(value, bool)):
        raise DamagedFile(f"{path} is damaged: its {key} is {as_yaml(value):.60}, and must be {_WORDS[kind]}")
    return cast("Kind", value)
