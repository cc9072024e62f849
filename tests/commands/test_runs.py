"""`alignkit runs` as it is typed."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from alignkit.cli import app
from alignkit.cli.ends import run_to_its_end
from alignkit.errors import ConfigError, ModelError, OutputError, RunError
from alignkit.runs.directory import Run
from alignkit.runs.given import Given
from alignkit.runs.lock import hold
from alignkit.runs.manifest import lineage
from alignkit.runs.result import check_results, seal_result


def make(folder: Path, parent: Path | None = None, *, loss: float = 1.0, **settings: object) -> Path:
    given = Given({"name": folder.name, **settings}, dict.fromkeys(settings, "command line"), ["alignkit", "sft"])
    parents = lineage({"model.name": str(parent)}, folder) if parent else []
    run = Run(folder, folder.parent.name, given, parents=parents, result={"eval_loss": {"first": 2.0, "last": loss}})
    run.begin()
    run.write("finished")
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    a = make(Path("runs/sft/a"))
    make(Path("runs/dpo/b"), a, loss=0.5)
    for number, loss in enumerate((0.3, 0.2)):
        make(Path(f"runs/sft/sw/{number}"), loss=loss, seed=number)
    Path("runs/sft/sw/multirun.yaml").touch()
    return tmp_path


def typed(*words: str, **how: Any) -> str:
    done = CliRunner().invoke(app, ["runs", *words], **how)
    if done.exception is not None:
        raise done.exception
    return done.output


def test_the_tree_has_children_below_their_parents_and_a_sweep_in_one_line(project: Path) -> None:
    lines = [line.split() for line in typed().splitlines()]
    assert lines[0] == ["stage", "status", "figure", "age", "size"]
    assert [line[:3] for line in lines[1:]] == [
        ["sft/a", "sft", "finished"],
        ["└─", "dpo/b", "dpo"],
        ["sft/sw", "(sweep", "of"],
    ]
    assert "2 finished  loss 0.2 " in typed()


def test_records_that_lead_in_a_circle_end(project: Path) -> None:
    record = Path("runs/sft/a/run.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"parents": [{"path": "../../dpo/b"}]}))
    assert {line.split()[0] for line in typed().splitlines()[1:]} == {"sft/a", "dpo/b", "sft/sw"}
    assert "which started from it: one of the records is damaged" in typed("show", "a")


def test_a_name_cannot_begin_a_line(project: Path) -> None:
    Path("runs/sft/a").rename("runs/sft/a\nalignkit: forged")
    for words in ([], ["path"], ["show", "runs/sft/a\nalignkit: forged"]):
        assert not any(line.startswith("alignkit: forged") for line in typed(*words).splitlines())


def test_json_has_an_object_for_each_run(project: Path) -> None:
    found = {run["folder"]: run for run in map(json.loads, typed("--json").splitlines())}
    assert found["runs/dpo/b"]["parents"] == [str(project / "runs" / "sft" / "a")]
    assert found["runs/sft/sw/0"]["sweep"] == "runs/sft/sw"
    assert found["runs/sft/a"]["figure"] == {"eval_loss": 1.0}


def test_a_run_is_shown_with_where_its_settings_came_from(project: Path) -> None:
    shown = typed("show", "sft/sw/1")
    assert "seed: 1  (command line)" in shown
    assert "eval_loss: 2 → 0.2" in shown
    assert str(project / "runs" / "sft" / "a") in typed("show", "b")
    assert "then      runs/dpo/b" in typed("show", "a")


def test_a_sweep_is_shown_as_a_table_and_a_picture(project: Path) -> None:
    shown = typed("show", "sw", "--png", "sweep.png")
    assert [line.split() for line in shown.splitlines()[:3]] == [
        ["seed", "status", "loss"],
        ["0", "0", "finished", "0.3"],
        ["1", "*", "1", "finished", "0.2"],
    ]
    assert "* the best is runs/sft/sw/1" in shown
    assert Path("sweep.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_are_compared(project: Path) -> None:
    shown = typed("diff", "sft/sw/0", "sft/sw/1")
    assert "  seed: 0 → 1" in shown
    assert "  eval_loss.last: 0.3 → 0.2" in shown
    assert "every logged step agrees" in shown
    assert "agree in settings" in typed("diff", "a", "a")


def test_paths_are_for_scripts(project: Path) -> None:
    assert typed("path", "a") == "runs/sft/a\n"
    assert typed("path", "--stage", "dpo", "--last") == "runs/dpo/b\n"
    with pytest.raises(RunError, match="there is no failed run below runs"):
        typed("path", "--status", "failed")
    with pytest.raises(ConfigError, match="--status done: choose running, finished, failed, interrupted"):
        typed("path", "--status", "done")


def test_runs_are_removed_when_that_is_confirmed(project: Path) -> None:
    assert "nothing was removed" in typed("rm", "b", input="n\n")
    assert Path("runs/dpo/b").is_dir()
    assert " freed" in typed("rm", "b", "--yes")
    assert not Path("runs/dpo").exists()


def test_a_run_of_a_pipeline_or_sweep_that_goes_on_is_not_removed(project: Path) -> None:
    with hold(Path("runs/sft/sw"), Path("runs/sft/sw/.lock")), pytest.raises(RunError) as caught:
        typed("rm", "sft/sw/0", "--yes")
    assert str(caught.value) == "runs/sft/sw/0 is part of runs/sft/sw, which is being written: wait until it has ended"
    assert "freed" in typed("rm", "sft/sw/0", "--yes")


def test_a_run_that_starts_from_one_while_that_is_removed_keeps_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def started(path: Path, target: Path) -> Path:
        if target.name == ".1.removed":
            make(Path("runs/dpo/child"), Path("runs/sft/sw/1"))  # at the last moment
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", started)
    with pytest.raises(RunError, match=r"^runs/sft/sw/1 is what runs/dpo/child started from: remove those first"):
        typed("rm", "sft/sw/1", "--yes")
    assert Path("runs/sft/sw/1/run.json").is_file()
    assert sorted(path.name for path in Path("runs/sft/sw").iterdir()) == ["0", "1", "multirun.yaml"]


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_run_whose_parent_is_removed_before_it_begins_does_not_begin(
    project: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    parent, folder = Path("runs/sft/a"), Path("runs/dpo/new")
    run = Run(folder, "dpo", Given({}), parents=lineage({"model.name": str(parent)}, folder))
    write = Run.write

    def removed(run: Run, status: str, **how: Any) -> None:
        parent.rename("elsewhere")
        write(run, status, **how)

    if moment == "before":
        parent.rename("elsewhere")
    else:
        monkeypatch.setattr(Run, "write", removed)
    with pytest.raises(RunError, match=r"runs/sft/a was removed or moved while it was read$"):
        run.begin()
    assert (folder / "run.json").is_file() == (moment == "between")  # which then says that it failed


def test_a_command_whose_run_is_removed_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/sft/read")

    def told(error: Exception) -> tuple[int, list[str]]:
        """What ends a command that reads a run which is removed, and then meets an error."""

        def read() -> None:
            check_results(folder)
            typed("rm", "read", "--yes")
            raise error

        make(folder)
        seal_result(folder)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            run_to_its_end(read)
        return int(caught.value.code or 0), capsys.readouterr().err.splitlines()

    removed = "alignkit: runs/sft/read was removed or moved while it was read"
    assert told(FileNotFoundError(2, "No such file", "x")) == (2, [removed])
    assert told(ModelError("there is no tokenizer")) == (2, [removed, "alignkit: there is no tokenizer"])
    assert told(OutputError("the disk is full")) == (1, ["alignkit: the disk is full"])
    assert told(MemoryError())[0] == 1
    with pytest.raises(SystemExit):
        run_to_its_end(lambda: typed("show", "nothing"))  # which reads none of these
    assert "removed" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_to_its_end(
            partial(check_results, Path("runs/sft/a"), folder)
        )  # one is no result, the other never was there
    assert "removed" not in capsys.readouterr().err
