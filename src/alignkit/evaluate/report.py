"""The file of `--out`: everything that a command measured, with the settings that it measured with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.runs.console import SafeConsole
from alignkit.runs.output import writing


def write_report(out: Path, *, settings: Mapping[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """Write the settings and what was measured of each run as JSON."""
    text = json.dumps(_without_nan({"settings": dict(settings), "runs": runs}), indent=1, ensure_ascii=False) + "\n"
    with writing(out) as aside:
        aside.write_text(text, encoding="utf-8")
    SafeConsole(stderr=True).print(f"all of it: {out}", markup=False, highlight=False)


def _without_nan(value: Any) -> Any:
    """Replace infinities and NaN by None: JSON has neither."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
