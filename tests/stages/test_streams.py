"""Training goes on without a terminal, and with one that knows few characters."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.stages.sft.run import run

Job = Callable[..., Any]


class Gone(io.StringIO):
    """A stream whose reader leaves after the first line."""

    def write(self, text: str) -> int:
        if self.getvalue():
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


def test_it_outlives_its_reader_and_the_log_has_it_all(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", out := Gone())
    monkeypatch.setattr(sys, "stderr", Gone())
    run(job(), tmp_path / "x")
    assert out.getvalue().count("\n") < 9
    assert json.loads((tmp_path / "x/run.json").read_text())["status"] == "finished"
    log = (tmp_path / "x/log.txt").read_text()
    assert "standard output takes no more (Broken pipe): training goes on, and the log has all of it" in log
    assert "step 4/4" in log
    assert "next: alignkit generate" in log


def test_it_says_in_ascii_what_ascii_has(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    run(job(), tmp_path / "x")
    sys.stdout.flush()
    assert r'--prompt "\u2026"' in raw.getvalue().decode("ascii")
