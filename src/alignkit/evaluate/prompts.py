"""Prompts as they are given to a command: on the command line, in a text file, or in a data file of any format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.data.files.sources import Source, check_sources, parse_sources, read_rows
from alignkit.data.rows.columns import check_fields
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.prompts import PROMPT_FIELDS, detect_prompts, read_prompt
from alignkit.data.rows.values import RowError
from alignkit.errors import AlignkitError, DataError

logger = logging.getLogger(__name__)

Prompts = list[tuple[str, Conversation]]  # each with its source: file:row, or the number of its --prompt


def check_prompts(texts: Sequence[str], path: Path | None, *, format: str, columns: Mapping[str, Any]) -> list[str]:
    """List what is wrong before rows are read, one line each; empty if nothing is."""
    problems = []
    if not texts and path is None:
        problems.append("there is nothing to answer: give --prompt TEXT or --prompts FILE")
    problems += [f"--prompt {i} is empty" for i, text in enumerate(texts, start=1) if not text.strip()]
    if (format != "auto" or columns) and (path is None or path.suffix == ".txt"):
        names = " and ".join([*(["format"] if format != "auto" else []), *(["columns"] if columns else [])])
        problems.append(f"{names}: no effect without a data file: --prompt and text files hold prompts as they are")
    try:
        if path is not None and path.suffix == ".txt":
            _check_text(path)
        elif path is not None:
            check_sources([_source(path, format, columns)])
    except AlignkitError as error:
        problems += error.problems
    return problems


def read_prompts(texts: Sequence[str], path: Path | None, *, format: str, columns: Mapping[str, Any]) -> Prompts:
    """Read every prompt that was given, those of the command line first.

    A data file may be of any format, preference pairs too, and its responses, if it has some, are ignored; `.txt` holds
    one prompt a line.

    Raises:
        DataError: rows that cannot be read, together; or there are none.
    """
    given = [(f"--prompt {i}", _from_user(text)) for i, text in enumerate(texts, start=1)]
    if path is None:
        return given
    try:
        return given + _of_file(path, format, columns)
    except DataError as error:  # these commands have no section data: its settings stand alone
        plain = [
            line.replace("data.columns", "columns").replace("data.format", "format").replace("data.max_row_bytes=", "")
            for line in error.problems
        ]
        raise DataError(*plain) from error


def _of_file(path: Path, format: str, columns: Mapping[str, Any]) -> Prompts:
    if path.suffix == ".txt":
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        return [(f"{path}:{i}", _from_user(line)) for i, line in lines if line.strip()]
    rows = list(read_rows(_source(path, format, columns)))
    if not rows:
        raise DataError(f"--prompts {path}: it holds no prompts")
    if format == "auto":
        first = next((row.row for row in rows if isinstance(row.row, dict)), {})
        format = detect_prompts(first.keys(), first, columns=columns)
        check_fields(columns, format, PROMPT_FIELDS[format])
    prompts, problems, seen = [], [], KeysSeen()
    for row in rows:
        try:
            if row.problem:
                raise RowError(row.problem)
            prompts.append((row.source, read_prompt(row.row, format, columns, seen)))
        except RowError as error:
            problems.append(f"{row.source}: {error}")
    if problems:
        raise DataError(*problems)
    for line in seen.lines():
        logger.info("%s: %s", path, line)
    return prompts


def _source(path: Path, format: str, columns: Mapping[str, Any]) -> Source:
    (source,) = parse_sources(
        str(path), setting="--prompts", format=format, columns=columns, split=None, fields=PROMPT_FIELDS
    )
    return source


def _from_user(text: str) -> Conversation:
    return Conversation((Message("user", text),))


def _check_text(path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"--prompts {path}: it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--prompts {path}: it is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise DataError(f"--prompts {path}: it holds no prompts")
