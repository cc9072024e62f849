"""Who may use a run directory, and what it records."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from alignkit.choices import Resume
from alignkit.errors import Interrupted, RunError, StopSignal
from alignkit.runs.directory import guard_run
from alignkit.runs.given import Given
from alignkit.runs.lock import LOCK, hold
from alignkit.runs.manifest import read_manifest

SETTINGS: dict[str, Any] = {
    "name": "x",
    "resume": False,
    "overwrite": False,
    "seed": 1,
    "model": {"name": "tiny", "token": "${oc.env:TOKEN}"},
    "data": {"path": ["a.jsonl", {"path": "b.jsonl"}]},
}


def guarded(
    folder: Path, *, resume: bool | str = False, overwrite: bool = False, record: dict[str, Any] = SETTINGS
) -> Any:
    return guard_run(folder, stage="sft", given=Given(record), resume=Resume(str(resume).lower()), overwrite=overwrite)


def finish(folder: Path) -> None:
    with guarded(folder) as run:
        run.begin()
        (folder / "model.safetensors").write_text("trained")
        run.result = {"eval_loss": 1.5}


def end(folder: Path, error: BaseException) -> None:
    """Begin a run that an error ends."""
    with guarded(folder) as run:
        run.begin()
        (folder / "checkpoints").mkdir()
        assert read_manifest(folder)["status"] == "running"
        raise error


def interrupt(folder: Path) -> None:
    with pytest.raises(Interrupted):
        end(folder, Interrupted(15, "saved"))
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True, exist_ok=True)


def refused(folder: Path, **how: Any) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}
    with pytest.raises(RunError) as caught, guarded(folder, **how):
        raise AssertionError("a refused run must not be entered")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return str(caught.value)


def test_a_finished_run_records_what_it_was(tmp_path: Path) -> None:
    finish(tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / "run.json").read_text())
    assert manifest["stage"] == "sft"
    assert manifest["status"] == "finished"
    assert manifest["job"] == SETTINGS  # interpolations as they were given: no secret is written out
    assert manifest["result"] == {"eval_loss": 1.5}
    assert manifest["parents"] == []
    assert manifest["versions"].keys() >= {"alignkit", "torch", "transformers", "trl", "peft"}
    assert manifest["started"] <= manifest["ended"]


def test_the_record_says_how_a_run_ended(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        end(tmp_path / "x", ZeroDivisionError())
    assert read_manifest(tmp_path / "x")["status"] == "failed"
    assert read_manifest(tmp_path / "x")["error"] == "ZeroDivisionError"
    interrupt(tmp_path / "y")
    assert read_manifest(tmp_path / "y")["status"] == "interrupted"


@pytest.mark.parametrize(
    ("error", "name"), [(KeyboardInterrupt(), "SIGINT"), (StopSignal(15), "SIGTERM"), (StopSignal(1), "SIGHUP")]
)
def test_a_signal_outside_of_a_step_is_told_and_recorded(tmp_path: Path, error: BaseException, name: str) -> None:
    with pytest.raises(Interrupted) as caught:
        end(tmp_path / "x", error)
    assert str(caught.value) == f"{name}: stopped outside of a training step; go on with resume=true"
    assert caught.value.exit_status == 128 + signal.Signals[name]
    assert read_manifest(tmp_path / "x")["status"] == "interrupted"
    with guarded(tmp_path / "x", resume=True) as run:
        assert run.resuming
    with pytest.raises(Interrupted, match="outside of a training step; nothing was written"), guarded(tmp_path / "y"):
        raise error
    assert not (tmp_path / "y").exists()


def test_the_record_says_who_ran_it_and_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    interrupt(tmp_path / "x")
    with guarded(tmp_path / "x", resume=True) as run:
        run.begin()
        with run.timed("train"):
            pass
    manifest = read_manifest(tmp_path / "x")
    first, second = manifest["starts"]
    assert first["at"] <= second["at"]
    assert second["pid"] == os.getpid()
    assert second["folder"] == str(tmp_path)
    assert second["git"] is None
    assert second["memory"] > 2**30
    assert manifest["timings"].keys() == {"prepare", "train"}


def test_no_secret_is_recorded(tmp_path: Path) -> None:
    given = Given(SETTINGS | {"train": {"hub_token": "hf_abc", "max_steps": 3}})
    with guard_run(tmp_path / "x", stage="sft", given=given, resume=Resume.false, overwrite=False) as run:
        run.begin()
    manifest = read_manifest(tmp_path / "x")
    assert manifest["job"]["train"] == {"hub_token": "***", "max_steps": 3}
    assert manifest["job"]["model"]["token"] == "${oc.env:TOKEN}"


def test_a_run_of_a_later_version_is_refused(tmp_path: Path) -> None:
    interrupt(tmp_path / "x")
    path = tmp_path / "x" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    assert "was written by a later alignkit: its run.json has format 99" in refused(tmp_path / "x", resume=True)


def test_nothing_is_written_before_a_run_begins(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), guarded(tmp_path / "x"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    finish(tmp_path / "y")
    with pytest.raises(ZeroDivisionError), guarded(tmp_path / "y", overwrite=True):
        raise ZeroDivisionError
    assert (tmp_path / "y" / "model.safetensors").read_text() == "trained"


def test_a_finished_run_is_not_written_over_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    finish(folder)
    assert refused(folder).splitlines() == [
        f"{folder} is a finished run: choose another name, or overwrite=true to replace it",
        f"to train {folder} further, start another run from it: name=… model=run model.name={folder}",
    ]
    with guarded(folder, overwrite=True) as run:
        run.begin()
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "run.json"]


def test_half_an_overwritten_run_is_never_taken_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path / "x")

    def killed(path: Path) -> None:
        if path.name != ".lock":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(Interrupted), guarded(tmp_path / "x", overwrite=True) as run:
        run.begin()
    monkeypatch.undo()
    assert read_manifest(tmp_path / "x")["status"] != "finished"


def test_an_unfinished_run_goes_on_or_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    interrupt(folder)
    assert refused(folder) == (
        f"{folder} is an unfinished run (interrupted): go on with resume=true, or overwrite=true to replace it"
    )
    with guarded(folder, resume=True) as run:
        assert run.resuming
        run.begin()
        assert (folder / "checkpoints").is_dir()
    interrupt(folder_two := tmp_path / "y")
    with guarded(folder_two, overwrite=True) as run:
        assert not run.resuming
        run.begin()
        assert not (folder_two / "checkpoints").exists()


STATES = ("none", "unfinished", "finished", "live", "changed settings")


def bring_about(state: str, folder: Path) -> None:
    if state == "finished":
        finish(folder)
    elif state != "none":
        interrupt(folder)


@pytest.mark.parametrize(
    ("resume", "outcomes"),
    [
        ("false", ["starts", "is an unfinished run", "is a finished run", "is being written", "is an unfinished run"]),
        ("true", ["there is no run in", "goes on", "is finished", "is being written", "seed was 1 in"]),
        ("auto", ["starts", "goes on", "is finished", "is being written", "seed was 1 in"]),
        ("force", ["there is no run in", "goes on", "is finished", "is being written", "goes on"]),
    ],
)
@pytest.mark.parametrize("state", STATES)
def test_what_each_value_of_resume_does(tmp_path: Path, state: str, resume: str, outcomes: list[str]) -> None:
    folder = tmp_path / "x"
    bring_about(state, folder)
    outcome = outcomes[STATES.index(state)]
    record = {**SETTINGS, "seed": 2} if state == "changed settings" else SETTINGS
    with ExitStack() as holder:
        if state == "live":
            holder.enter_context(hold(folder, folder / LOCK))
        try:
            with guarded(folder, resume=resume, record=record) as run:
                did = "is finished" if run.finished else "goes on" if run.resuming else "starts"
                if not run.finished:
                    run.begin()
        except RunError as error:
            did = str(error)
    assert outcome in did
    if (resume, state) == ("force", "changed settings"):
        manifest = read_manifest(folder)
        assert manifest["starts"][-1]["changes"] == [f"seed was 1 in {folder} and is 2 now"]
        assert manifest["job"]["seed"] == 2


def test_what_a_checkpoint_holds_cannot_be_forced(tmp_path: Path) -> None:
    interrupt(tmp_path / "x")
    changed = {**SETTINGS, "train": {"learning_rate": 0.1}}
    told = "train.learning_rate was null in .* and is 0.1 now, and the checkpoint holds what it was"
    with pytest.raises(RunError, match=told), guarded(tmp_path / "x", resume="force", record=changed):
        pass


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "x")
    before = (tmp_path / "x" / "run.json").read_bytes()
    with guarded(tmp_path / "x", resume=True) as run:
        assert run.finished
    assert (tmp_path / "x" / "run.json").read_bytes() == before


def test_a_finished_run_is_not_extended_and_the_refusal_says_how_to_go_on_from_it(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    finish(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert refused(folder, resume=True, record={**SETTINGS, "resume": True, "seed": 2}).splitlines() == [
        f"resume=true: seed was 1 in {folder} and is 2 now",
        f"to train {folder} further, start another run from it: name=… model=run model.name={folder} lora=none",
    ]


def test_a_run_that_ended_before_its_first_checkpoint_simply_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        end(tmp_path / "x", ZeroDivisionError())
    with guarded(tmp_path / "x") as run:
        assert not run.resuming
        run.begin()
    assert read_manifest(tmp_path / "x")["status"] == "finished"
    assert f"{tmp_path}/x ended (failed) before its first checkpoint: it starts again" in caplog.text


def test_resume_needs_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    assert refused(folder, resume=True) == (
        f"resume=true: there is no run in {folder}; leave resume out, or resume=auto, to start one"
    )


def test_processes_that_their_launcher_starts_again_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    interrupt(tmp_path / "run")
    assert "is an unfinished run" in refused(tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for rank, asked in (("0", {}), ("0", {"overwrite": True}), ("1", {})):
        monkeypatch.setenv("RANK", rank)
        with guarded(tmp_path / "run", **asked) as run:
            assert run.resuming
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")  # which did not begin this run
    assert "is an unfinished run" in refused(tmp_path / "run")


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    finish(tmp_path / "x")
    assert refused(tmp_path / "x", resume=True, overwrite=True) == (
        "resume=true goes on with a run and overwrite=true deletes it: give one of them"
    )


def test_a_resume_with_other_settings_is_refused_naming_each(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    interrupt(folder)
    changed = {**SETTINGS, "resume": True, "seed": 2, "model": {"name": "large", "token": "${oc.env:TOKEN}"}}
    text = refused(folder, resume=True, record=changed)
    assert text.splitlines()[:2] == [
        f"resume=true: model.name was 'tiny' in {folder} and is 'large' now",
        f"resume=true: seed was 1 in {folder} and is 2 now",
    ]
    with guarded(folder, resume=True, record={**SETTINGS, "resume": True, "name": "moved"}) as run:
        assert run.resuming


def test_a_folder_of_other_files_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        assert refused(tmp_path, **how) == f"{tmp_path} exists and is no run of alignkit: choose another name"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    finish(tmp_path)


def test_where_nothing_can_be_written_it_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file" / "runs" / "x") == (
        f"the run directory {tmp_path}/file/runs/x cannot be written: {tmp_path}/file is a file"
    )
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert "is read-only for you" in refused(tmp_path / "x")


def test_a_folder_that_is_read_only_for_everybody(tmp_path: Path) -> None:
    assert "is read-only for you" in refused(Path("/proc/self/x"))


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with guarded(tmp_path / "x") as run:
        run.begin()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_hide_what_ended_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    def train() -> None:
        with guarded(tmp_path / "x") as run:
            run.begin()
            monkeypatch.setattr(Path, "write_text", full)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()


def test_a_setting_that_is_newer_than_the_record_has_its_default(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    interrupt(folder)
    newer = {**SETTINGS, "resume": True, "data": {**SETTINGS["data"], "max_row_bytes": 64 * 2**20}}
    with guard_run(folder, stage="sft", given=Given(newer), resume=Resume.true, overwrite=False) as run:
        assert run.resuming
    text = refused(folder, resume=True, record={**newer, "data": {**newer["data"], "max_row_bytes": 100}})
    assert text.startswith(f"resume=true: data.max_row_bytes was 67108864 in {folder} and is 100 now")
