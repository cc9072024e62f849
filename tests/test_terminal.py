"""Text of a model or of a data file cannot command a terminal."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.terminal import for_the_result_alone, one_line, plain_number, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain λόγος 👩‍🚀\n\tindented [bold]", "plain λόγος 👩‍🚀\n\tindented [bold]"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b31m\x7f\x00", r"\x9b31m\x7f\x00"),
        ("10 %\rdone\b", r"10 %\rdone\x08"),
        ("abc\u202etxt.exe\u2066", r"abc\u202etxt.exe\u2066"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_small_figure_is_no_nought() -> None:
    assert [*map(plain_number, (0.0, 2.5, -0.0125, 0.001, 1.23456e-05, -2e-4))] == [
        *("0.0000", "2.5000", "-0.0125", "0.0010", "1.23e-05", "-0.0002"),
    ]


def test_brief_is_one_line_of_a_length() -> None:
    assert one_line("a\n  b\t\x1bc", 20) == r"a b \x1bc"
    assert one_line("a" * 30, 10) == "a" * 9 + "…"


def test_standard_output_is_kept_for_the_result(capfd: pytest.CaptureFixture[str]) -> None:
    with for_the_result_alone():
        sys.stdout.write("said\n")
        subprocess.run(["echo", "by a child"], check=True)
    sys.stdout.write("result\n")
    assert capfd.readouterr() == ("result\n", "said\nby a child\n")


@pytest.mark.parametrize(("closed", "status"), [(">&-", 1), ("<&-", 0), ("2>&-", 0)])
def test_a_stream_that_was_closed_is_no_internal_error(tmp_path: Path, closed: str, status: int) -> None:
    command = f"{sys.executable} -m alignkit runs --root {tmp_path} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr == ("alignkit: standard output cannot be written: Bad file descriptor\n" if status else "")
