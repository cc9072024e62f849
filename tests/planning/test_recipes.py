"""Recipes for models of the hub are planned and tried offline, and the page says of each what it takes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignkit.recipes import recipe_folder, recipe_names
from stand_ins import fill_hub, words_of, write_project

ROOT = Path(__file__).parents[2]
RECIPES = [name for name in recipe_names(recipe_folder()) if name.split("/")[0] in ("sft", "reward", "dpo", "ppo")]
# Parameters as the pages of the hub have them.
PUBLISHED = {
    "HuggingFaceTB--SmolLM2-135M-Instruct": 134_515_008,
    "Qwen--Qwen3-0.6B": 596_049_920,
    "meta-llama--Llama-3.2-1B": 1_235_814_400,
    "openai-community--gpt2": 124_439_808,
}


def rows_of_the_page() -> list[str]:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- plan: python scripts/plan_table.py -->\n(.*?)<!-- /plan -->", page, re.DOTALL)
    assert found
    return found[1].splitlines()[2:]


def test_the_page_has_every_recipe_for_a_model_of_the_hub() -> None:
    assert [row.split("`")[1] for row in rows_of_the_page()] == RECIPES


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_fixture_has_the_parameters_of_its_model(name: str, tmp_path: Path) -> None:
    fixture = ROOT / "tests" / "fixtures" / "hub" / f"{name}.json"
    (tmp_path / "config.json").write_text(fixture.read_text())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]


@pytest.mark.slow
def test_the_table_of_the_page_is_what_the_script_prints() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "plan_table.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == rows_of_the_page()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_tried_on_a_tiny_model_like_its_own(recipe: str, tmp_path: Path) -> None:
    hub, project = tmp_path / "home" / "hub", tmp_path / "project"
    project.mkdir()
    fill_hub(hub)
    write_project(project, hub)
    command = [sys.executable, "-m", "alignkit", "smoke", recipe.split("/")[0], *words_of(recipe), "--json"]
    home = {**os.environ, "HF_HOME": str(hub.parent)}
    done = subprocess.run(command, cwd=project, env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [step["name"] for step in json.loads(done.stdout)["steps"]][-1] == "reload and ask"
