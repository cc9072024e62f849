"""What is left and said at the end of a run."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from alignkit.runs.report import conclude

HISTORY: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 4.0, "eval_runtime": 1.0},
    {"step": 1, "loss": 3.5, "learning_rate": 1e-3},
    {"step": 2, "eval_loss": 2.0},
    {"step": 2, "loss": 3.0},
    {"step": 3, "loss": 2.5},
    {"step": 3, "eval_loss": 2.25},
    {"step": 3, "train_runtime": 9.0, "train_loss": 3.0},
]
SAMPLES = [{"prompt": f"say\n {n}", "wanted": f"{n}", "before": "[red]é", "after": "x" * 200} for n in range(4)]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines that went to the log, filled as they come."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(record.getMessage().split("\n"))

    caplog.set_level(logging.INFO, logger="alignkit.runs.report")
    handler = Lines()
    logging.getLogger("alignkit.runs.report").addHandler(handler)
    yield lines
    logging.getLogger("alignkit.runs.report").removeHandler(handler)


def test_the_figures_are_the_first_and_the_last_value(tmp_path: Path) -> None:
    assert conclude(tmp_path, HISTORY, samples=[]) == {
        "eval_loss": {"first": 4.0, "last": 2.25},
        "train_loss": {"last": 2.5},
        "kept_step": 3,
    }


def test_where_the_best_is_kept_the_figures_are_its_own(tmp_path: Path, said: list[str]) -> None:
    assert conclude(tmp_path, HISTORY, samples=[], kept_step=2) == {
        "eval_loss": {"first": 4.0, "last": 2.0},
        "train_loss": {"last": 3.0},
        "kept_step": 2,
    }
    assert "kept              step 2, the best" in said


def test_several_held_out_sets_have_their_own_figures(tmp_path: Path) -> None:
    history = [{"step": 0, "eval_near_loss": 3.0, "eval_far_loss": 4.0}, {"step": 5, "eval_near_loss": 1.0}]
    assert conclude(tmp_path, history, samples=[]) == {
        "eval_near_loss": {"first": 3.0, "last": 1.0},
        "eval_far_loss": {"first": 4.0, "last": 4.0},
        "kept_step": 5,
    }


@pytest.mark.parametrize(
    ("history", "kept_step", "warned"),
    [
        (HISTORY, None, []),
        ([{"step": 0, "eval_loss": 2.25}, *HISTORY[1:]], None, ["loss was 2.25, and is 2.25"]),
        ([{"step": 0, "eval_loss": 2.25}, *HISTORY[1:]], 2, []),  # the best is better, the last is not
        ([{"step": 0, "eval_loss": 1.0}, *HISTORY[1:]], 2, ["loss was 1, and is 2"]),
        (HISTORY[1:], None, []),  # what it was before training is not known
        (HISTORY[:2], None, []),  # nor what it is now
        ([{"step": 0, "eval_far_loss": 1.0}, {"step": 5, "eval_far_loss": 2.0}], None, ["far loss was 1, and is 2"]),
    ],
)
def test_what_is_no_better_than_before_training_is_said(
    tmp_path: Path, said: list[str], history: list[dict[str, Any]], kept_step: int | None, warned: list[str]
) -> None:
    conclude(tmp_path, history, samples=[], kept_step=kept_step)
    expected = [f"no better than before training: the held-out {line}" for line in warned]
    assert [line for line in said if line.startswith("no better")] == expected


def test_other_held_out_figures_and_what_a_stage_says_of_them_come_before_the_next_command(
    tmp_path: Path, said: list[str]
) -> None:
    history = [{"step": 0, "eval_margins": 0.0}, {"step": 1, "eval_margins": 1.5}]
    figures = conclude(
        tmp_path, history, samples=[], also=["margins"], judge=lambda found: [f"it is {found['eval_margins']['last']}"]
    )
    assert figures == {"eval_margins": {"first": 0.0, "last": 1.5}, "kept_step": 1}
    assert said[1:4] == ["eval margins      0.0000 → 1.5000", "it is 1.5", "kept              step 1, the last"]
    assert said[-1].startswith("next: ")


def test_the_last_screen_by_value(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = Path("run")
    run_dir.mkdir()
    conclude(run_dir, HISTORY, samples=SAMPLES)
    shown = [line for n in range(3) for line in ("", f"prompt   say {n}", "  before [red]é", f"  after  {'x' * 159}…")]
    assert said == [
        *shown,
        "",
        "eval loss         4.0000 → 2.2500",
        "train loss        2.5000",
        "kept              step 3, the last",
        "model             run",
        "metrics           run/metrics.jsonl",
        "picture           run/loss.png",
        "rows              run/rows.jsonl",
        "page              run/report.html",
        "log               run/log.txt",
        'next: alignkit generate run --prompt "…"',
    ]


def test_samples_are_written_whole(tmp_path: Path) -> None:
    conclude(tmp_path, HISTORY, samples=SAMPLES)
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == SAMPLES
    assert "é" in lines[0]


def test_nothing_measured_is_nothing_drawn_and_nothing_claimed(tmp_path: Path, said: list[str]) -> None:
    assert conclude(tmp_path, [], samples=[]) == {}
    assert list(tmp_path.iterdir()) == []
    assert not [line for line in said if line.startswith("picture")]


def test_only_the_main_process_writes_and_speaks(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert conclude(tmp_path, HISTORY, samples=SAMPLES) == {}
    assert list(tmp_path.iterdir()) == []
    assert said == []
