"""Standard output in another encoding, without a reader, on a full disk; and text from outside that reaches it."""

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit import cli
from alignkit.errors import ConfigError
from alignkit.runs.console import SafeConsole
from alignkit.terminal import SteadyStream, in_a_line, print_json_lines

ROWS = [{"instruction": f"Say {n} → λ.", "output": f"{n} 🦉"} for n in range(8)]
TRAIN = ["sft", "model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "data.path=rows.jsonl"]
TRAIN += [
    "samples=2",
    "sampling.max_new_tokens=4",
    "train.report_to=none",
    "train.max_steps=2",
    "train.logging_steps=1",
]
TRAIN += ["train.per_device_train_batch_size=2"]


class Broken(io.StringIO):
    """A stream that takes this many writes."""

    def __init__(self, num_writes: int, number: int) -> None:
        super().__init__()
        self.num_left, self.number = num_writes, number

    def write(self, text: str) -> int:
        if not self.num_left:
            raise OSError(self.number, os.strerror(self.number))
        self.num_left -= 1
        return super().write(text)


def test_a_lost_stream_is_told_once_and_takes_everything() -> None:
    told: list[OSError] = []
    stream = SteadyStream(Broken(1, errno.EIO), told.append)
    for _ in range(3):
        stream.write("a line\n")
        stream.flush()
    assert [error.errno for error in told] == [errno.EIO]
    assert stream.getvalue() == "a line\n"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"\u2192 \xe9 \U0001f989"), ("latin-1", r"\u2192 é \U0001f989")]
)
def test_a_character_that_an_encoding_lacks_is_written_out(encoding: str, shown: str) -> None:
    raw = io.BytesIO()
    stream = SteadyStream(io.TextIOWrapper(raw, encoding=encoding), lambda error: None)
    stream.write("→ é 🦉")
    stream.flush()
    assert raw.getvalue().decode(encoding) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_lines_are_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_json_lines(ROWS)
    sys.stdout.flush()
    assert [json.loads(line) for line in raw.getvalue().decode(encoding).splitlines()] == ROWS


@pytest.fixture
def folder(tmp_path: Path, write_rows: Callable[..., Path]) -> Path:
    write_rows(ROWS)
    return tmp_path


def shell(folder: Path, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", f"set -o pipefail; {command}"]
    program = f"{sys.executable} -m alignkit"
    return subprocess.run(
        words, cwd=folder, env={**os.environ, "ALIGNKIT": program, **env}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_training_outlives_its_reader_and_the_log_has_it_all(folder: Path) -> None:
    done = shell(folder, f"$ALIGNKIT {' '.join(TRAIN)} 2>&1 | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.splitlines()[-1] == "0"
    assert json.loads((folder / "runs/sft/default/run.json").read_text())["status"] == "finished"
    log = (folder / "runs/sft/default/log.txt").read_text()
    assert "takes no more (Broken pipe): training goes on, and the log has all of it" in log
    assert "step 2/2" in log
    assert "next: alignkit generate" in log


@pytest.mark.slow
def test_training_ends_well_in_ascii_and_so_does_inspect(folder: Path) -> None:
    done = shell(folder, f"$ALIGNKIT {' '.join(TRAIN)} 2>&1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stdout
    assert "internal error" not in done.stdout
    shown = shell(folder, f"$ALIGNKIT inspect {' '.join(TRAIN)}", PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert r"\U0001f989" in shown.stdout


@pytest.mark.slow
def test_a_command_whose_reader_is_gone_ends_without_a_word(folder: Path) -> None:
    done = shell(folder, f"$ALIGNKIT inspect {' '.join(TRAIN)} --json | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_standard_output_on_a_full_disk(folder: Path) -> None:
    done = shell(folder, f"$ALIGNKIT inspect {' '.join(TRAIN)} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "alignkit: standard output cannot be written: No space left on device\n"


FORGED = "x\x1b[2J\r\nalignkit: all is well\u2028alignkit: really\x85\x9b31m"
SHOWN = r"x\x1b[2J\r\nalignkit: all is well\u2028alignkit: really\x85\x9b31m"


def test_in_a_line() -> None:
    assert in_a_line(FORGED) == SHOWN
    assert in_a_line("\ud800 half") == r"\ud800 half"


@pytest.mark.parametrize("error", [ConfigError(f"no column {FORGED}"), ValueError(f"no column {FORGED}")])
def test_an_error_cannot_command_the_terminal_or_forge_a_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.program, "app", fail)
    monkeypatch.setattr(sys, "argv", ["alignkit"])
    with pytest.raises(SystemExit):
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alignkit: ")
    assert r"no column x\x1b[2J" in line


def test_no_console_obeys_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    SafeConsole().print("\x1b[2J[bold]x[/bold]\x9b", style="bold", highlight=False)
    assert capsys.readouterr().out == "\\x1b[2Jx\\x9b\n"
