import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import ones, zeros

from alignkit.config import ModelConfig
from alignkit.models.source import ModelSource, hub_options, source_problems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as far as one can tell without reading weights."""
    path = tmp_path / "sound"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"weight": zeros(2)}, path / "model.safetensors")
    return path


@pytest.fixture
def adapter(tmp_path: Path, folder: Path) -> Path:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder), "revision": None}))
    save_file({"weight": zeros(2)}, path / "adapter_model.safetensors")
    return path


def source(name: Path | str, **settings: Any) -> ModelSource:
    return ModelSource.of(ModelConfig(name=str(name), **settings))


def problems(name: Path | str, **settings: str) -> list[str]:
    return source_problems(source(name, **settings))


def test_a_sound_folder_and_a_sound_adapter_have_no_problems(folder: Path, adapter: Path) -> None:
    assert problems(folder) == []
    assert problems(adapter) == []


def test_a_missing_folder_is_told_with_the_nearest_sibling(folder: Path) -> None:
    missing = folder.with_name("soud")
    assert problems(missing) == [
        f"model.name: there is no folder {missing}; did you mean '{folder.with_name('sound')}'?"
    ]


def test_a_file_is_no_folder(folder: Path) -> None:
    path = folder / "config.json"
    assert problems(path) == [f"model.name: {path} is a file; name the folder it is in"]


def test_a_folder_of_models_is_no_model(folder: Path) -> None:
    assert problems(folder.parent) == [
        f"model.name: {folder.parent} holds no model, config.json is missing; did you mean '{folder}'?"
    ]


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert problems(folder) == [f"model.name: {folder} has no weights, no *.safetensors file"]


def test_a_pickle_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert problems(folder) == [
        f"model.name: {folder} has its weights in a pickle, pytorch_model.bin, which can run code: convert it at "
        "https://huggingface.co/spaces/safetensors/convert, or take a revision that has safetensors"
    ]


def test_a_cut_file_and_a_file_that_is_something_else_are_damaged(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert problems(folder)[0].startswith(f"model.name: {weights} is damaged, or no safetensors file: ")
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert problems(folder)[0].startswith(f"model.name: {weights} is damaged, or no safetensors file: ")


@pytest.mark.parametrize("file", ["config.json", "run.json"])
def test_damaged_json_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("{")
    (line,) = problems(folder)
    assert line.startswith(f"model.name: {folder / file} is damaged, it is no JSON: Expecting property name")
    (folder / file).write_text("[]")
    assert problems(folder) == [f"model.name: {folder / file} is damaged: it holds no JSON object"]


def test_every_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert problems(folder) == [f"model.name: {folder / f'model-{n}.safetensors'} is missing" for n in (2, 3)]


def test_an_adapter_without_its_base_is_refused_before_loading(folder: Path, adapter: Path) -> None:
    shutil.rmtree(folder)
    assert problems(adapter) == [
        f"model.name: the base of the adapter {adapter} is missing: {folder}; put it back, or name its new place as "
        f"base_model_name_or_path in {adapter / 'adapter_config.json'}"
    ]


def test_the_base_of_an_adapter_is_checked_too(folder: Path, adapter: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert problems(adapter) == [
        f"model.name: {folder} has no weights, no *.safetensors file (the base of the adapter {adapter})"
    ]


def test_a_base_inside_the_run_is_taken_before_the_one_that_is_named(folder: Path, adapter: Path) -> None:
    model = ModelConfig(name=str(adapter))
    assert ModelSource.of(model).base.config == dataclasses.replace(model, name=str(folder))
    folder.rename(adapter / "base")
    assert ModelSource.of(model).base.config == dataclasses.replace(model, name=str(adapter / "base"))
    assert problems(adapter) == []


def test_two_names_of_the_same_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = shutil.copytree(folder, folder.with_name("twin"))
    other = shutil.copytree(folder, folder.with_name("other"))
    save_file({"weight": ones(2)}, other / "model.safetensors")
    sharded = shutil.copytree(folder, folder.with_name("sharded"))
    save_file({"weight": zeros(2)}, sharded / "model-2.safetensors")
    wider = shutil.copytree(folder, folder.with_name("wider"))
    (wider / "config.json").write_text('{"model_type": "gpt3"}')
    monkeypatch.chdir(folder.parent)
    for name in (folder, "sound", "./sound/../sound", twin):
        assert source(folder).is_same(source(name))
    for name in (other, sharded, wider, "org/sound"):
        assert not source(folder).is_same(source(name))
    assert source("org/a", revision="1").is_same(source("org/a", revision="1"))
    assert not source("org/a", revision="1").is_same(source("org/a"))
    assert not source("org/a").is_same(source("org/b"))


def test_a_folder_has_no_revision(folder: Path) -> None:
    assert problems(folder, revision="main") == [
        f"model.revision: {folder} is a folder, only a hub model has revisions; leave it out"
    ]


def test_a_run_that_was_stopped_is_no_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "interrupted"}')
    assert problems(tmp_path) == [
        f"model.name: {tmp_path} is an unfinished run (interrupted): go on with resume=true",
    ]


def test_a_name_that_can_be_no_hub_id_is_not_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft" / "tiny").mkdir(parents=True)
    assert problems("runs/sft/tinny") == [
        "model.name: there is no folder runs/sft/tinny; did you mean 'runs/sft/tiny'?",
    ]


def test_offline_a_hub_id_is_one_clear_line() -> None:
    assert problems("nobody/such-model") == [
        "model.name: there is no folder 'nobody/such-model', and the hub cannot be reached to look there"
    ]


def test_offline_a_model_in_the_cache_is_taken_from_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    stored = cache / "models--org--name"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, stored / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert problems("org/name") == []
    assert problems("org/name", revision="other") != []
    assert hub_options(source("org/name")) == {"revision": "main", "local_files_only": True}
    assert hub_options(source(folder)) == {}
