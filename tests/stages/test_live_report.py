"""The page of a run that goes on."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState

from alignkit.pages.report import REPORT
from alignkit.runs.directory import Run
from alignkit.runs.given import Given
from alignkit.stages.live_report import LiveReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = Run(tmp_path / "sft" / "a", "sft", Given({}))
    run.begin()
    return run.folder


def log(callback: LiveReport, *, is_main: bool = True) -> None:
    callback.on_log(None, TrainerState(is_world_process_zero=is_main), TrainerControl())  # type: ignore[arg-type]


def test_it_is_written_at_the_first_log_and_then_no_more_than_now_and_then(folder: Path) -> None:
    callback = LiveReport(folder)
    log(callback)
    first = (folder / REPORT).read_text()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    log(callback)
    assert (folder / REPORT).read_text() == first
    callback._next = 0.0
    log(callback)
    assert "Curves</h2>" in (folder / REPORT).read_text()


def test_only_the_main_process_writes(folder: Path) -> None:
    log(LiveReport(folder), is_main=False)
    assert not (folder / REPORT).exists()


def test_a_page_that_cannot_be_written_is_told_and_stops_no_training(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / REPORT).mkdir()
    log(LiveReport(folder))
    assert "report.html could not be written" in caplog.text
