"""What is found of runs on the disk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignkit.errors import RunError
from alignkit.runs.difference import differences, first_difference
from alignkit.runs.directory import Run
from alignkit.runs.found import descendants, find_runs, named_run
from alignkit.runs.given import Given
from alignkit.runs.lock import LOCK, hold, is_held
from alignkit.runs.manifest import lineage, read_manifest
from alignkit.runs.removal import check_removal, remove


def make(folder: Path, status: str = "finished", *, parent: Path | None = None, **result: float) -> Path:
    """A run as a stage leaves it."""
    figures = {name: {"first": 9.0, "last": value} for name, value in result.items()}
    run = Run(folder, folder.parent.name, Given({"seed": 1}), result=figures)
    run.parents = lineage({"model.name": str(parent)}, folder) if parent else []
    run.begin()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "weights.safetensors").write_bytes(b"x" * 1000)
    run.write(status)
    return folder


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """sft/a, from which dpo/b came, and then ppo/c."""
    a = make(tmp_path / "sft" / "a", eval_loss=2.5)
    b = make(tmp_path / "dpo" / "b", parent=a)
    make(tmp_path / "ppo" / "c", "failed", parent=b)
    return tmp_path


def test_runs_are_found_with_what_came_of_them(root: Path) -> None:
    a, b, c = sorted(find_runs(root), key=lambda run: run.folder.name)
    assert (a.stage, a.status, a.figure) == ("sft", "finished", ("eval_loss", 2.5))
    assert (b.parents, c.status, c.figure) == ([a.folder], "failed", None)
    assert a.checkpoints == 1000
    assert a.size == 1000 + (a.folder / "run.json").stat().st_size
    assert [run.folder.name for run in descendants(a, find_runs(root))] == ["b", "c"]


def test_a_run_that_nobody_leads_is_interrupted(root: Path) -> None:
    folder = make(root / "sft" / "x", "running")
    assert named_run("x", root).status == "interrupted"
    with hold(folder, folder / LOCK):
        assert named_run("x", root).status == "running"


def test_a_run_that_another_process_leads_is_running(tmp_path: Path) -> None:
    file = tmp_path / LOCK
    program = (
        "from pathlib import Path\nfrom alignkit.runs.lock import hold\n"
        f"with hold(Path('x'), Path({str(file)!r})):\n    print(1, flush=True)\n    input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert is_held(file)
        other.kill()
        other.wait()
        assert file.exists()
        assert not is_held(file)


def test_a_run_of_another_host_is_judged_by_when_it_last_wrote(root: Path) -> None:
    folder = make(root / "sft" / "x", "running")
    rewrite(folder, starts=[{"host": "elsewhere"}])
    assert named_run("x", root).status == "running"
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 3600,) * 2)
    assert named_run("x", root).status == "interrupted"


def test_an_unfinished_run_shows_its_last_figures(root: Path) -> None:
    folder = make(root / "sft" / "x", "interrupted")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert named_run("x", root).figure == ("train_loss", 2.0)


def test_a_run_is_found_by_each_of_its_names(root: Path) -> None:
    for name in ("a", "sft/a", str(root / "sft" / "a")):
        assert named_run(name, root).folder == root / "sft" / "a"
    make(root / "dpo" / "a")
    with pytest.raises(RunError, match="2 runs are called a: "):
        named_run("a", root)
    with pytest.raises(RunError, match=r"there is no run sft/aa below .*; did you mean 'sft/a'?"):
        named_run("sft/aa", root)
    with pytest.raises(RunError, match=r"there is no run aa below .*; alignkit runs lists them$"):
        named_run("aa", root)  # 'a' would be refused, too


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {name: value}
            for name in ("result", "inputs", "versions", "timings", "origins", "starts")
            for value in (3, "x")
        ),
        *({"starts": [start]} for start in (None, {"git": [1]}, {"command": [7]}, {"command": None}, {"folder": 1})),
        {"job": {"model": {"name": 7}}},
    ],
    ids=str,
)
def test_a_damaged_record_is_named_and_the_other_runs_are_listed(
    root: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object]
) -> None:
    rewrite(root / "dpo" / "b", **changes)
    assert {run.folder.name for run in find_runs(root)} == {"a", "c"}
    assert f"{root}/dpo/b is left out: its run.json is damaged" in caplog.text
    with pytest.raises(RunError, match=r"dpo/b/run.json is damaged, or no record of alignkit's"):
        named_run("dpo/b", root)


def test_an_unreadable_folder_is_named(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(place: str) -> object:
        if Path(place).name == "dpo":
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuse)  # a test may run as a user who may read everything
    assert {run.folder.name for run in find_runs(root)} == {"a", "c"}
    assert f"{root}/dpo is left out: Permission denied" in caplog.text


@pytest.mark.parametrize("name", ["~nobody-of-this-name/a", "x" * 300, "a\0"])
def test_a_name_that_is_no_folder_is_no_run(root: Path, name: str) -> None:
    with pytest.raises(RunError):
        named_run(name, root)


def test_a_link_is_not_removed_in_place_of_its_run(root: Path) -> None:
    (root / "link").symlink_to(root / "ppo" / "c")
    with pytest.raises(RunError, match=r"link is a link to .*ppo/c: name that"):
        remove(named_run("link", root), root, checkpoints=False)
    assert (root / "ppo" / "c" / "run.json").is_file()


def test_a_run_that_others_start_from_is_not_removed(root: Path) -> None:
    everyone = find_runs(root)
    a, b, c = (named_run(name, root) for name in "abc")
    with pytest.raises(RunError, match=r"sft/a is what .*dpo/b, .*ppo/c started from: remove those first, or with it"):
        check_removal([a], everyone, checkpoints=False)
    check_removal([a, b, c], everyone, checkpoints=False)
    check_removal([a], everyone, checkpoints=True)
    with pytest.raises(RunError, match="ppo/c is failed: without its checkpoints it cannot be resumed"):
        check_removal([c], everyone, checkpoints=True)


def test_a_removal_that_was_killed_does_not_stand_in_the_way_of_another(root: Path) -> None:
    (root / "ppo" / ".c.removed" / "x").mkdir(parents=True)
    remove(named_run("c", root), root, checkpoints=False)
    assert not (root / "ppo").exists()


def test_what_is_removed_is_gone(root: Path) -> None:
    remove(named_run("a", root), root, checkpoints=True)
    assert named_run("a", root).checkpoints == 0
    remove(named_run("c", root), root, checkpoints=False)
    assert not (root / "ppo").exists()
    with hold(root / "dpo" / "b", root / "dpo" / "b" / LOCK), pytest.raises(RunError, match="is being written"):
        remove(named_run("b", root), root, checkpoints=False)


def test_the_first_step_that_differs_is_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    one.write_text('{"step": 1, "loss": 3.0, "seconds/update": 1}\n{"step": 2, "loss": NaN}\n')
    other.write_text('{"step": 1, "loss": 3.0, "seconds/update": 2}\n{"step": 2, "loss": NaN}\n')
    assert first_difference(one, other) is None
    other.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 1.0}\n')
    assert (first_difference(one, other) or ())[:2] == (2, "loss")
    other.write_text('{"step": 1, "loss": 3.0}\n')
    assert (first_difference(one, other) or ())[:2] == (2, "step")


def test_runs_differ_by_what_they_were_told_and_made_of(root: Path) -> None:
    a, b = root / "sft" / "a", root / "dpo" / "b"
    rewrite(a, job={"name": "a", "seed": 1, "data": {"path": "x"}}, inputs={"data": {"x": "0"}})
    rewrite(b, job={"name": "b", "seed": 2, "data": {"path": "x"}}, inputs={"data": {"x": "1"}})
    found = differences(a, read_manifest(a) or {}, b, read_manifest(b) or {})
    assert found.settings == {"seed": (1, 2)}
    assert found.inputs == {"data.x": ("0", "1")}
    assert found.versions == {}
    assert found.figures == {"eval_loss.first": (9.0, "–"), "eval_loss.last": (2.5, "–")}
    assert not differences(a, read_manifest(a) or {}, a, read_manifest(a) or {})
