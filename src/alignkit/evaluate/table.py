"""Figures in columns on a terminal, whatever its width: a narrow table would hide numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len


def format_table(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    """Format lines with a name on the left and right-aligned figures.

    Args:
        names: of the rows.
        rows: heading to figure; a row may lack some.
    """
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    cells = [
        ["", *headings],
        *([name, *(row.get(h, "–") for h in headings)] for name, row in zip(names, rows, strict=True)),
    ]
    widths = [max(cell_len(line[column]) for line in cells) for column in range(len(headings) + 1)]
    lines = []
    for name, *figures in cells:
        padded = [" " * (width - cell_len(text)) + text for text, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name + " " * (widths[0] - cell_len(name)), *padded]))
    return "\n".join(lines)
