"""The first rows of a run as the loss sees them: `first_rows.json`, for the page of the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from alignkit.data.views.view import View

FIRST_ROWS = "first_rows.json"
_NUM_ROWS = 3


def write_first_rows(folder: Path, view: View) -> None:
    """Write the first training rows of a run into its folder, with the legend of their spans."""
    cuts = view.cuts()
    rows = [
        {
            "place": row.place,
            "size": f"{row.size}{cuts.get(row.source, '')}",
            "parts": [{"name": name, "spans": list(map(asdict, spans))} for name, spans in row.parts(view.tokenizer)],
        }
        for row in view.rows(num_rows=_NUM_ROWS)
    ]
    content = {"legend": list(map(asdict, view.legend)), "rows": rows}
    (folder / FIRST_ROWS).write_text(json.dumps(content) + "\n", encoding="utf-8")
