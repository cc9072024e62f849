"""The file of `--out` is JSON, which knows no NaN."""

import json
import math
from pathlib import Path

import pytest

from alignkit.evaluate.report import write_report


def test_settings_and_runs_are_written_without_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    write_report(
        out, settings={"seed": 0}, runs=[{"loss": 1.5, "error": math.nan, "n": (1, math.inf), "distinct": {2: 0.5}}]
    )
    assert json.loads(out.read_text()) == {
        "settings": {"seed": 0},
        "runs": [{"loss": 1.5, "error": None, "n": [1, None], "distinct": {"2": 0.5}}],
    }
    assert capsys.readouterr().err == f"all of it: {out}\n"
