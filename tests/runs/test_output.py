"""A full disk in the middle of a result, told in a line; nothing is left of the file."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from alignkit.commands.merge import _explained
from alignkit.errors import ConfigError, OutputError
from alignkit.evaluate.answers import AnswerFile
from alignkit.evaluate.report import write_report
from alignkit.runs.output import writing
from alignkit.training.reference_cache import _keep


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_what_a_disk_would_not_take(tmp_path: Path, number: int) -> None:
    def write() -> None:
        with writing(tmp_path / "out") as aside:
            aside.write_text("half of i")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError) as caught:
        write()
    assert str(caught.value) == f"{tmp_path}/out cannot be written: {os.strerror(number)}; nothing is left of it"
    assert caught.value.exit_status == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").write_text("of before")
    with pytest.raises(OutputError, match=r"out cannot be written: .*; it is as it was$"):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]


def test_a_file_is_replaced_whole_behind_its_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of before")
    (tmp_path / "link").symlink_to("file")
    with writing(tmp_path / "link") as aside:
        aside.write_text("new")
        assert (tmp_path / "file").read_text() == "of before"
    assert (tmp_path / "link").is_symlink()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "new", "link": "new"}


def test_a_device_is_written_as_it_is() -> None:
    with writing(Path(os.devnull)) as aside:
        assert aside == Path(os.devnull)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"r\.json cannot be written: No space left on device"):
        write_report(tmp_path / "r.json", settings={}, runs=[])


def test_answers_say_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AnswerFile(tmp_path / "a.jsonl", {"seed": 1})
    file.append([{"response": "x"}, {"response": "y"}])
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError) as caught:
        file.append([{"response": "z"}])
    assert str(caught.value) == (
        f"--out {tmp_path}/a.jsonl cannot be written: No space left on device; 2 responses are in it, and the same "
        "command continues it where there is room"
    )


@contextmanager
def longest_file(num_bytes: int) -> Iterator[None]:
    """Let the system cut what is written past so many bytes of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_answer_that_a_full_disk_cut_is_taken_off_without_writing_the_others_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    AnswerFile(path, {"seed": 1}).append([{"response": "x"}] * 3)
    sound = path.read_bytes()
    more = AnswerFile(path, {"seed": 1})
    with longest_file(len(sound) + 5), pytest.raises(OutputError, match="3 responses are in it"):
        more.append([{"response": "y"}])
    assert path.read_bytes() == sound + b'{"res'
    with longest_file(10):  # too few for them
        assert AnswerFile(path, {"seed": 1}).num_done == 3
    assert path.read_bytes() == sound


def test_a_merge() -> None:
    out = Path("models/mine")
    with (
        pytest.raises(OutputError, match="models/mine cannot be written: its disk is full"),
        _explained(Path("models/mine")),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ConfigError, match=r"^models/mine exists already: name another folder"), _explained(out):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")
    with pytest.raises(ZeroDivisionError), _explained(out):
        raise ZeroDivisionError


def test_a_reference_that_cannot_be_kept_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    _keep({}, tmp_path / "file" / "key.safetensors")
    assert "the log-probabilities are not kept: " in caplog.text
    _keep({"x": torch.zeros(1)}, tmp_path / "kept" / "key.safetensors")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["key.safetensors"]
