"""What is read back of the record of a run."""

import json
import shutil
from pathlib import Path

import pytest

from alignkit.errors import RunError
from alignkit.runs.directory import Run
from alignkit.runs.given import Given
from alignkit.runs.manifest import check_format, lineage, parent_folders, read_manifest


def finish(folder: Path, parents: list[dict[str, str]] | None = None) -> Path:
    run = Run(folder, "sft", Given({}), parents=parents or [])
    run.begin()
    run.write("finished")
    return folder


def test_lineage_names_the_runs_that_a_model_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = finish(tmp_path / "sft" / "x"), tmp_path / "dpo" / "y"
    found = lineage({"model.name": str(parent), "reference.name": "org/model"}, child)
    assert found == [{"setting": "model.name", "path": "../../sft/x", "sha256": found[0]["sha256"]}]
    assert len(found[0]["sha256"]) == 64
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lineage({"model.name": "~/sft/x"}, child) == found


def test_parents_are_found_after_the_project_has_moved(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    parent = finish(before / "runs" / "sft" / "x")
    finish(before / "runs" / "dpo" / "y", lineage({"model.name": str(parent)}, before / "runs" / "dpo" / "y"))
    shutil.move(before, after)
    child = after / "runs" / "dpo" / "y"
    assert parent_folders(child, read_manifest(child) or {}) == [after / "runs" / "sft" / "x"]


def test_parents_of_earlier_versions_have_absolute_paths(tmp_path: Path) -> None:
    assert parent_folders(tmp_path, {"parents": [{"path": "/runs/sft/x", "sha256": ""}]}) == [Path("/runs/sft/x")]


@pytest.mark.parametrize("number", [4, "3", None])
def test_a_format_that_is_not_known_is_refused(tmp_path: Path, number: object) -> None:
    with pytest.raises(RunError, match=f"its run.json has format {number}, and this one knows up to 3"):
        check_format({"format": number}, tmp_path)
    check_format({"format": 3}, tmp_path)
    check_format({}, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"status": 1})])
def test_what_is_no_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert read_manifest(tmp_path) is None
