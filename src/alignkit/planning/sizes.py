"""Sizes of memory as people write them: `24GB` is 24 · 10⁹ bytes, `24GiB` 24 · 2³⁰."""

from __future__ import annotations

import re

from alignkit.errors import ConfigError

_UNITS = {"": 1, "B": 1} | {f"{letter}{end}": 1000**n for n, letter in enumerate("KMGT", 1) for end in ("", "B")}
_UNITS |= {f"{letter}IB": 1024**n for n, letter in enumerate("KMGT", 1)}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Read a size of memory, in bytes.

    Raises:
        ConfigError: it is no size, or nothing fits into it.
    """
    found = _SIZE.fullmatch(text)
    if found is None or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise ConfigError(f"--memory {text!r} is no size of memory: write it as 24GB, 80GiB or 512MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def shown_size(num_bytes: float) -> str:
    """Write a number of bytes with three digits or so."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:,.2f} {unit}"
    return f"{num_bytes:,.0f} B"
