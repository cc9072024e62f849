"""`config=NAME` finds the user's own files and the recipes that ship, in a source tree and in a wheel."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from alignkit.cli import STAGES
from alignkit.errors import ConfigError
from alignkit.launch import compose_job
from alignkit.recipes import find_config, recipe_folder, recipe_names

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, name: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(f"model: tiny_gpt2\ndata: demo\nname: {name}\n")


def test_the_path_as_typed_wins_then_the_users_folder_then_the_recipe() -> None:
    words, own = ["config=smoke/sft"], Path("own")
    own.mkdir()
    assert compose_job("sft", words, config_dir=own).name == "smoke"
    write("own/smoke/sft.yaml", "from-config-dir")
    assert compose_job("sft", words, config_dir=own).name == "from-config-dir"
    assert compose_job("sft", words).name == "smoke"
    write("smoke/sft.yaml", "from-here")
    assert compose_job("sft", words, config_dir=own).name == "from-here"
    assert compose_job("sft", ["config=smoke/sft.yaml"]).name == "from-here"


def test_every_recipe_is_found_by_its_name() -> None:
    assert recipe_folder() == ROOT / "configs"
    assert {find_config(name) for name in recipe_names(recipe_folder())} == {*ROOT.glob("configs/**/*.yaml")}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("smoke/stf", "no recipe of this name; did you mean smoke/sft or smoke/ppo or smoke/dpo or smoke/grpo?"),
        ("sweep", "no recipe of this name; did you mean sweep/sft_learning_rate?"),
        ("configs/smoke/sft.yaml", "no recipe of this name; did you mean smoke/sft or reviews/sft?"),
        ("mine/mi.yml", "no recipe of this name; did you mean mine/mine.yaml?"),
        ("ours", "no recipe of this name; did you mean team/ours?"),
        ("mine", "it is a folder; did you mean mine/mine.yaml?"),
        ("xyzzy", "no recipe of this name; recipes are in dpo, pipeline, ppo, reviews, reward, sft, smoke, sweep"),
        ("", "names no file: give it as config=FILE, or a recipe as config=smoke/sft"),
    ],
)
def test_a_wrong_name_is_answered_with_the_near_ones(name: str, answer: str) -> None:
    write("mine/mine.yaml", "mine")
    write("own/team/ours.yaml", "ours")
    with pytest.raises(ConfigError) as error:
        find_config(name, Path("own"))
    (line,) = error.value.problems
    assert line.endswith(answer)


def test_all_wrong_names_are_told_together_and_a_mistake_names_its_file() -> None:
    write("mine.yaml", "mine")
    with Path("mine.yaml").open("a") as file:
        file.write("sed: 1\n")
    with pytest.raises(ConfigError) as error:
        compose_job("sft", ["config=nope", "config=smoke/nope", "config=mine"])
    assert [line.partition(": ")[0] for line in error.value.problems] == [
        "config=nope",
        "config=smoke/nope",
        "mine.yaml",
    ]


def build(target: str, folder: Path) -> Path:
    """A wheel, unpacked; or what an editable install leaves."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder / "dist")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def composed(stage: str, words: list[str], package: Path) -> str:
    """What `alignkit STAGE … --cfg job` prints where the package is installed here."""
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", stage, *words, "--cfg", "job"],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_of_the_help_are_understood_after_an_install_from_a_wheel(tmp_path: Path) -> None:
    package = build("wheel", tmp_path)
    shipped = {str(path.relative_to(package / "alignkit")) for path in package.glob("alignkit/configs/**/*.yaml")}
    assert shipped == {str(path.relative_to(ROOT)) for path in ROOT.glob("configs/**/*.yaml")}
    for stage, (_, example) in STAGES.items():
        assert re.search(r"^name: (\w+-)?smoke$", composed(stage, example.split(), package), re.MULTILINE)


def test_an_editable_install_reads_the_recipes_where_they_are_edited(tmp_path: Path) -> None:
    installed = build("wheel:editable", tmp_path)
    (path,) = installed.glob("*.pth")
    assert not (installed / "alignkit").exists()  # no copy that would go stale
    assert "name: smoke" in composed("sft", ["config=smoke/sft"], Path(path.read_text()))
