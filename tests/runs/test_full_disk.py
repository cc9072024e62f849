"""A disk that takes no more, told in a line wherever it shows."""

import errno
import os
from pathlib import Path

import pytest

from alignkit.choices import Resume
from alignkit.cli.ends import run_to_its_end
from alignkit.commands.merge import _explained
from alignkit.errors import OutputError, RunError, TrainingError
from alignkit.launch import launch
from alignkit.runs.directory import guard_run
from alignkit.runs.full_disk import disk_trouble, is_disk_full
from alignkit.runs.given import Given
from alignkit.smoke.trial import try_out


def test_a_full_disk_is_known_by_errno_by_words_and_by_what_led_to_an_error() -> None:
    assert is_disk_full(OSError(errno.ENOSPC, "x"))
    assert is_disk_full(OSError(errno.EDQUOT, "x"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "x"))
    assert not is_disk_full(RuntimeError("shapes differ"))
    caused = ValueError("cannot write")
    caused.__cause__ = OSError(errno.ENOSPC, "x")
    assert is_disk_full(caused)


def test_trouble_names_the_file_that_led_to_an_error() -> None:
    caused = ValueError("cannot write")
    caused.__cause__ = OSError(errno.EROFS, "Read-only file system", "/data/x")
    assert disk_trouble(caused) == "/data/x cannot be written: Read-only file system"
    assert disk_trouble(RuntimeError("PytorchStreamWriter: iostream error")) == (
        "a file cannot be written: its disk is full"
    )
    assert disk_trouble(OSError(errno.EACCES, "Permission denied", "x")) is None


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there/x")


def no_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (full, "there/x cannot be written: No space left on device: free space there, or write elsewhere (TMPDIR is"),
        (no_memory, "out of memory: lower batch_size, data.max_length or sampling.max_new_tokens, or"),
    ],
)
def test_a_command_without_words_of_its_own(
    command: object, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert callable(command)
    with pytest.raises(SystemExit) as ended:
        run_to_its_end(command)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"alignkit: {said}")
    assert list(tmp_path.iterdir()) == []  # no traceback of a bug


def test_a_run_says_how_to_go_on(tmp_path: Path) -> None:
    def stop(*, begun: bool) -> None:
        with guard_run(tmp_path / "a", stage="sft", given=Given({}), resume=Resume.false, overwrite=False) as run:
            if begun:
                run.begin()
            full()

    with pytest.raises(TrainingError, match=r"^sft, outside of a step: there/x cannot be .*; free .* start again$"):
        stop(begun=False)
    with pytest.raises(TrainingError, match=r"; free space, then go on with resume=true$"):
        stop(begun=True)


def test_a_run_whose_first_record_has_no_room_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def begin() -> None:
        with guard_run(tmp_path / "a", stage="sft", given=Given({}), resume=Resume.false, overwrite=False) as run:
            run.begin()

    def half(path: Path, text: str, **rest: str) -> int:
        write(path, text[:5], **rest)
        return full()  # type: ignore[return-value]

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(TrainingError, match=r"; free space, then start again$"):
        begin()
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    begin()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=f"the run directory cannot be made: {os.strerror(number)}: 'runs/sft/b'"):
        launch("sft", ["name=b", "model=tiny_gpt2", "template=instruction", "data.path=rows.jsonl"])
    with pytest.raises(RunError, match=f"^kept cannot be written: {os.strerror(number)} "):
        try_out(object.__new__(_Job), keep=Path("kept"))


class _Job:
    stage = "sft"


def test_standard_output_is_not_the_merged_folder() -> None:
    lost = OutputError("standard output cannot be written: No space left on device")
    lost.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError) as caught, _explained(Path("m")):
        raise lost
    assert caught.value is lost
