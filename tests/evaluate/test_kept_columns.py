"""Files are read with the columns that a run was trained with, where they cannot be read without."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import DataConfig
from alignkit.data.rows.responses import RESPONSES
from alignkit.evaluate.kept_columns import kept_columns, kept_prompt_columns, with_kept_columns


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    columns = {"prompt": "frage", "completion": "antwort"}
    Path("run").mkdir()
    Path("run/run.json").write_text(json.dumps({"status": "finished", "job": {"data": {"columns": columns}}}))
    return tmp_path


def written(**row: Any) -> Path:
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    return Path("rows.jsonl")


def test_the_columns_of_the_training_are_kept_as_far_as_the_file_has_them() -> None:
    path = written(frage="Why?")
    assert kept_prompt_columns(path, ["no run", "run"], format="auto") == {"prompt": "frage"}
    path = written(frage="Why?", antwort="So.")
    assert kept_prompt_columns(path, ["run"], format="auto") == {"prompt": "frage", "completion": "antwort"}
    assert kept_columns(path, ["run"], RESPONSES.detect, RESPONSES.fields) == {
        "prompt": "frage",
        "completion": "antwort",
    }


def test_columns_of_the_command_are_kept_first_and_those_of_the_section_alone() -> None:
    data = DataConfig(path=str(written(frage="Why?", antwort="So.", reply="No.")))
    own = {"prompt": "frage", "completion": "reply"}
    assert with_kept_columns(data, ["run"], RESPONSES).columns == {"prompt": "frage", "completion": "antwort"}
    assert with_kept_columns(data, ["run"], RESPONSES, given=own).columns == own
    assert with_kept_columns(replace(data, columns=own), ["run"], RESPONSES).columns == own
    assert with_kept_columns(replace(data, format="prompt"), ["run"], RESPONSES).columns == {}


def test_what_can_be_read_as_it_is_is_read_so() -> None:
    assert kept_prompt_columns(written(prompt="Why?"), ["run"], format="auto") == {}
    assert kept_prompt_columns(written(prompt="Why?", frage="Warum?"), ["run"], format="auto") == {}


def test_columns_that_do_not_fit_and_files_that_are_not_there_are_left_to_who_reads_them() -> None:
    assert kept_prompt_columns(written(question="Why?"), ["run"], format="auto") == {}
    assert kept_prompt_columns(Path("gone.jsonl"), ["run"], format="auto") == {}
    assert kept_prompt_columns(written(frage="Why?"), ["run"], format="prompt") == {}
    assert kept_prompt_columns(None, ["run"], format="auto") == {}
