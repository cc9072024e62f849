"""What is wrong with models and files given by name, told together."""

from pathlib import Path

from alignkit.config import ModelConfig
from alignkit.evaluate.arguments import check_models, check_new_file


def test_no_model_is_one_line() -> None:
    assert check_models([], ModelConfig("")) == ["there is no model: name a run directory, a model folder or a hub id"]


def test_a_name_given_twice_is_refused_where_models_are_compared(tmp_path: Path) -> None:
    name, section = str(tmp_path), ModelConfig("")
    missing = f"model.name: {name} holds no model, config.json is missing"
    assert check_models([name, name], section, distinct=True) == [f"{name} is named twice", missing, missing]
    assert check_models([name, name], section) == [missing, missing]


def test_a_file_that_exists_is_not_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert check_new_file(None) == check_new_file(out) == []
    out.touch()
    assert check_new_file(out) == [f"--out {out} exists already: name another file or remove it"]
