"""One writer at a time, in processes of their own: refused, freed by a kill, and never in the way of a reader."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit.choices import Resume
from alignkit.commands import compare, evaluate, generate, inspect, merge, next, score, tasks
from alignkit.errors import AlignkitError, RunError
from alignkit.runs import lock
from alignkit.runs.directory import guard_run
from alignkit.runs.given import Given
from alignkit.runs.lock import hold
from alignkit.runs.manifest import read_manifest

BEGIN = """
import os, sys, time
from pathlib import Path
from alignkit.errors import RunError
from alignkit.choices import Resume
from alignkit.runs.directory import guard_run
from alignkit.runs.given import Given
from alignkit.runs.lock import hold
target = Path("target")
"""
HOLDING = "with hold(target, Path('target.lock')): print('held', flush=True); sys.stdin.read()"
WITH_WORKER = """
with hold(target, Path('target.lock')):
    if not (worker := os.fork()):
        os.close(0)
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    sys.stdin.read()
"""
WRITING_A_RUN = """
with guard_run(Path("x"), stage="sft", given=Given({}), resume=Resume.false, overwrite=False) as run:
    run.begin()
    print("held", flush=True)
    sys.stdin.read()
"""
NO_LOCKS = """
import fcntl
def lockf(*_):
    raise OSError(37, "No locks available")
fcntl.lockf = lockf
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a process that has said its first word; all are ended afterwards."""
    monkeypatch.chdir(tmp_path)
    started = []

    def run(code: str) -> subprocess.Popen[str]:
        program = [sys.executable, "-c", BEGIN + textwrap.dedent(code)]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def first_word(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def refusal(target: str = "target", file: str = "target.lock") -> str:
    with pytest.raises(RunError) as caught, hold(Path(target), Path(file)):
        pass
    return str(caught.value)


def test_the_later_one_is_told_who_holds_it(start: Start, tmp_path: Path) -> None:
    holder = start(HOLDING)
    assert first_word(holder) == "held"
    since = json.loads(Path("target.lock").read_text())["since"]
    assert refusal() == (
        f"target is being written by process {holder.pid} on {socket.gethostname()}, since {since}: wait until it has "
        "ended, or choose another name"
    )
    holder.communicate("")
    with hold(Path("target"), Path("target.lock")):
        assert f"this process, {os.getpid()}" in refusal()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_holds_nothing_though_a_worker_of_it_lives(start: Start) -> None:
    holder = start(WITH_WORKER)
    worker = int(first_word(holder))
    try:
        assert f"process {holder.pid} " in refusal()
        holder.kill()
        holder.wait()
        os.kill(worker, 0)
        with hold(Path("target"), Path("target.lock")):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_many_at_once_are_never_two(start: Start, tmp_path: Path) -> None:
    many = [
        start("""
            done = 0
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                try:
                    with hold(target, Path("folder/target.lock")):
                        os.close(os.open("alone", os.O_CREAT | os.O_EXCL))
                        os.unlink("alone")
                        done += 1
                except RunError:
                    pass
            print(done)
        """)
        for _ in range(4)
    ]
    said = [process.communicate()[0] for process in many]
    assert [process.returncode for process in many] == [0] * 4
    assert sum(map(int, said)) > 20
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("how", ["start", "resume", "overwrite"])
def test_a_run_that_is_being_written_is_left_to_its_writer(start: Start, how: str) -> None:
    holder = start(WRITING_A_RUN)
    assert first_word(holder) == "held"
    asked: Any = {"resume": Resume.true if how == "resume" else Resume.false, "overwrite": how == "overwrite"}
    with pytest.raises(RunError) as caught, guard_run(Path("x"), stage="sft", given=Given({}), **asked):
        pass
    assert str(caught.value).startswith(f"x is being written by process {holder.pid} on ")
    assert "overwrite" not in str(caught.value)
    assert (read_manifest(Path("x")) or {})["status"] == "running"  # whoever only reads may
    holder.kill()
    holder.wait()
    asked["resume"] = Resume.true if how == "start" else asked["resume"]
    with guard_run(Path("x"), stage="sft", given=Given({}), **asked) as run:
        run.begin()
    assert {path.name for path in Path("x").iterdir()} == {"run.json", "checksums.json"}


def test_two_starts_that_both_saw_no_run(start: Start) -> None:
    """The second comes while the first still reads its data and has written nothing."""
    holder = start(WRITING_A_RUN.replace("run.begin()", ""))
    assert first_word(holder) == "held"
    second = guard_run(Path("x"), stage="sft", given=Given({}), resume=Resume.false, overwrite=False)
    with pytest.raises(RunError, match="is being written by process"), second:
        pass
    holder.communicate("")
    assert (read_manifest(Path("x")) or {"status": "none"})["status"] == "none"
    assert not Path("x").exists()


@pytest.mark.parametrize("left", [[".lock"], [".encoded"], [".lock", ".encoded", ".run.json"]])
def test_what_a_kill_before_the_first_record_left_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def leave() -> None:
        for name in left:
            path = Path("x", name, *(["000000 train"] if name == ".encoded" else []))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    leave()
    resumed = guard_run(Path("x"), stage="sft", given=Given({}), resume=Resume.true, overwrite=False)
    with pytest.raises(RunError, match="there is no run in x; leave resume out, or resume=auto, to start one"), resumed:
        pass
    for overwrite in (False, True):
        leave()
        with guard_run(Path("x"), stage="sft", given=Given({}), resume=Resume.false, overwrite=overwrite) as run:
            run.begin()
        assert {path.name for path in Path("x").iterdir()} == {"run.json", "checksums.json"}
        shutil.rmtree("x")


WRITERS: dict[str, Callable[[Path], None]] = {
    "generate": lambda path: generate.run(None, prompts=[], prompts_path=None, out=path),  # type: ignore[arg-type]
    "score": lambda path: score.run(None, pairs=True, out=path),  # type: ignore[arg-type]
    "evaluate": lambda path: evaluate.run(None, runs=[], reward=None, reference=None, pairs=None, out=path),  # type: ignore[arg-type]
    "tasks": lambda path: tasks.run(None, runs=[], tasks=[], out=path),  # type: ignore[arg-type]
    "compare --out": lambda path: compare.run(
        None,  # type: ignore[arg-type]
        runs=[],
        prompts=[],
        prompts_path=None,
        reward=None,
        html=None,
        out=path,
    ),
    "compare --html": lambda path: compare.run(
        None,  # type: ignore[arg-type]
        runs=[],
        prompts=[],
        prompts_path=None,
        reward=None,
        html=path,
        out=None,
    ),
    "inspect": lambda path: inspect.run(None, num_rows=0, html=path, as_json=False, golden=None),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("command", WRITERS)
def test_every_command_holds_the_file_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start, command: str
) -> None:
    """Before it looks at anything else: no job is needed to be refused."""
    with hold(tmp_path / "out", tmp_path / ".out.lock"), pytest.raises(RunError, match="out is being written by"):
        WRITERS[command](tmp_path / "out")


def test_merge_and_next_hold_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "check", lambda *_: None)
    monkeypatch.setattr(next, "_check", lambda *_: None)
    out, png = tmp_path / "out", tmp_path / "out.png"
    with hold(out, tmp_path / ".out.lock"), pytest.raises(RunError, match="out is being written by"):
        merge.run(None, out=out)  # type: ignore[arg-type]
    with hold(png, tmp_path / ".out.png.lock"), pytest.raises(RunError, match=r"out\.png is being written by"):
        next.run(None, runs=[], prompt="", response=None, png=png)  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_written_is_known_before_the_work() -> None:
    with pytest.raises(AlignkitError, match="/proc/self/out cannot be written: "):
        WRITERS["generate"](Path("/proc/self/out"))


def without_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.fcntl, "lockf", without_locks)
    monkeypatch.setattr(lock, "_SETTLED_SECONDS", 0.01)


def test_without_locks_a_stamp_decides_and_it_is_said(
    start: Start, no_locks: None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    holder = start(NO_LOCKS + HOLDING)
    assert first_word(holder) == "held"
    assert f"process {holder.pid} on {socket.gethostname()}" in refusal()
    assert "this file system cannot lock" in caplog.text
    holder.kill()
    holder.wait()
    with hold(Path("target"), Path("target.lock")):  # of this machine, and dead
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_stamp_is_no_bug_of_ours(tmp_path: Path, no_locks: None) -> None:
    for content in ("", "[1]", "{", '{"pid": "x"}', json.dumps({"host": socket.gethostname(), "pid": 10**30})):
        (tmp_path / "lock").write_text(content)
        try:
            with hold(Path("target"), tmp_path / "lock"):
                held = True
        except RunError:
            held = False
        assert held is ("x" not in content), content  # of a holder that nobody can ask, the age decides


def test_a_stamp_of_another_machine_ends_by_its_age(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": os.getpid(), "since": "today"}))
    assert "process " in (text := refusal("target", str(file)))
    assert "on elsewhere, since today, its stamp 0 s old" in text
    past = time.time() - lock._ENDED_SECONDS - 1
    os.utime(file, (past, past))
    monkeypatch.setattr(lock, "_RENEWED_SECONDS", 0.01)
    with hold(Path("target"), file):
        os.utime(file, (past, past))
        deadline = time.monotonic() + 5
        while file.stat().st_mtime < past + 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
