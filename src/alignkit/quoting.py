"""How text is written where a grammar would read something else into it: Hydra's in a value, the shell's in a word."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

# A piece of a value: a quoted text, a run of plain characters and interpolations, or one delimiter.
_PIECE = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?P<run>(?:\$\{[^{}]*\}|[^,()\[\]{}='"])+)|.""", re.DOTALL)
_KEY = re.compile(r"\s*[\w.-]+\s*:")
# What Hydra's lexer has no rule for outside of quotes, so that it can only be text.
_ONLY_TEXT = re.compile(r"""[^A-Za-z0-9_/\-\\+.$%*@?|:,=()\[\]{}'"\s]""")
_DELIMITER = re.compile(r"""[=,()\[\]{}'"\\]""")


def quoted(value: str) -> str:
    """Write a text in Hydra's double quotes, in which only quotes and the backslashes before them are escaped."""
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value) + '"'


def typed_word(key: str, value: str) -> str:
    """Write `key=value` as it is typed in a shell."""
    return shlex.quote(f"{key}={value}")


def as_element(text: str) -> str:
    """Write a text as an element of a list or a value of a mapping."""
    return quoted(text) if _DELIMITER.search(text) or text != text.strip() else text


def delimiters(value: str) -> str:
    """Name the characters of a value that mean something to Hydra, each once."""
    return " ".join(dict.fromkeys(_DELIMITER.findall(value)))


def with_text_quoted(value: str) -> str:
    """Quote what can only be text, such as `~/rows.jsonl` or `größe`, also in lists and mappings."""
    return "".join(_pieces(value))


def _pieces(value: str) -> Iterator[str]:
    depth = 0  # of braces: there a key comes before a text
    for piece in _PIECE.finditer(value):
        run = piece["run"]
        depth += {"{": 1, "}": -1}.get(piece[0], 0)
        if run is None or not _ONLY_TEXT.search(run):
            yield piece[0]
            continue
        key = _KEY.match(run) if depth > 0 else None
        start = key.end() if key else 0
        text = run[start:].strip()
        before, after = run[start:].split(text, 1)
        yield f"{run[:start]}{before}{quoted(text)}{after}"


def repaired(value: str) -> str:
    """Write a list or a mapping as it may have been meant: a colon after a key, and texts with `=` in quotes."""
    pairs = re.sub(r"([{,]\s*[\w.-]+)=(?=[^{}\[\]]*\})", r"\1: ", value)
    text = re.compile(r"""(?<=[\[,])([^,\[\]{}'"]*=[^,\[\]{}'"]*)(?=[\],])""")
    return with_text_quoted(text.sub(lambda m: quoted(m[1].strip()), pairs))
