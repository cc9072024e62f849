"""Who hears what: the terminal our own words, the file everything."""

import logging
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

from alignkit.errors import RunError
from alignkit.runs.log import run_log
from alignkit.terminal import Lines

OURS = logging.getLogger("alignkit.somewhere")


def test_the_terminal_hears_us_and_the_file_hears_everybody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with run_log() as log:
        OURS.info("before there is a file")
        log.open(tmp_path / "log.txt")
        OURS.info("%s rows", "[red]12[/red]")
        transformers.utils.logging.get_logger("transformers.trainer").warning("upstream chatters")
        datasets.utils.logging.get_logger("datasets.builder").warning("the data library chatters")
        logging.getLogger("trl.trainer").info("***** running *****")
        warnings.warn("this is odd", UserWarning, stacklevel=1)
    said = capfd.readouterr()
    assert (said.out + said.err).splitlines() == ["before there is a file", "[red]12[/red] rows"]
    written = (tmp_path / "log.txt").read_text()
    for words in (
        "INFO alignkit.somewhere: before there is a file",
        "WARNING transformers.trainer: upstream chatters",
        "WARNING datasets.builder: the data library chatters",
        "INFO trl.trainer: ***** running *****",
        "UserWarning: this is odd",
    ):
        assert words in written


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for words in ("first", "second"):
        with run_log() as log:
            log.open(tmp_path / "log.txt")
            OURS.info(words)
    assert [line.rsplit(" ", 1)[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second"]


def test_other_processes_neither_speak_nor_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with run_log() as log:
        log.open(tmp_path / "log.txt")
        OURS.info("not heard")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_logging_is_afterwards_what_it_was() -> None:
    def handlers() -> Any:
        names = ("", "alignkit", "transformers", "datasets")
        return [
            (list(logging.getLogger(n).handlers), logging.getLogger(n).level, logging.getLogger(n).propagate)
            for n in names
        ]

    before = handlers()
    with run_log():
        pass
    assert handlers() == before


def fail(path: Path, error: Exception) -> None:
    with run_log() as log:
        log.open(path)
        raise error


def test_a_bug_leaves_its_traceback_in_the_file_and_a_mistake_does_not(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        fail(tmp_path / "bug.txt", ZeroDivisionError("oops"))
    assert "ZeroDivisionError: oops" in (tmp_path / "bug.txt").read_text()
    assert caught.value.__notes__ == [str(tmp_path / "bug.txt")]
    with pytest.raises(RunError):
        fail(tmp_path / "mistake.txt", RunError("no such run"))
    assert "Traceback" not in (tmp_path / "mistake.txt").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_does_not_fill_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with run_log() as log:
        log.open(Path("/dev/full"))
        OURS.info("still heard")
    assert capfd.readouterr() == ("still heard\n", "")


def test_what_comes_from_outside_cannot_begin_a_line_or_command_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with run_log():
        OURS.warning("column %s of %s", "a\x1b[2J\nfinished: runs/x", Path("b\nc"))
        OURS.info("%s rows, %d, %.1f\n", Lines("a table\nof ours"), 3, 0.5)
    assert capfd.readouterr().out == "column a\\x1b[2J\\nfinished: runs/x of b\\nc\na table\nof ours rows, 3, 0.5\n\n"
