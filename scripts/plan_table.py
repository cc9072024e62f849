"""Print what `alignkit plan STAGE config=RECIPE --gpu` says of the recipes for models of the hub, as rows of a table.

python scripts/plan_table.py                          # every such recipe
python scripts/plan_table.py sft/smollm2_135m_lora    # only these

Nothing is downloaded: of each model there is a config.json beside the tests. A letter is a token, and the longest rows
have all the tokens that the recipe takes.
"""

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="alignkit-")  # it is read when the hub is imported
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "planning"))

from alignkit.launch import compose_job
from alignkit.models.load import for_another_machine
from alignkit.planning.plan import make_plan
from alignkit.planning.rehearsal import Rehearsed
from alignkit.planning.sizes import shown_size
from alignkit.recipes import recipe_folder, recipe_names
from alignkit.stages.planned import for_device
from stand_ins import fill_hub, words_of, write_project  # it lies beside the tests

OF_THE_HUB = ("sft", "reward", "dpo", "ppo")  # folders of recipes


def row(recipe: str) -> str:
    """Plan a recipe; its row."""
    stage = recipe.partition("/")[0]
    job = for_device(compose_job(stage, words_of(recipe)), gpu=True)
    rehearse = import_module(f"alignkit.stages.{stage}.plan").rehearsal
    with for_another_machine():
        plan = make_plan(Rehearsed(rehearse(job, processes=1)), processes=1, memory=None)
    states = plan.held.get("optimizer", 0)
    cells = [f"`{recipe}`", f"{plan.parameters / 1e6:,.0f} M", f"{plan.trained / 1e6:,.1f} M"]
    cells += [shown_size(size) for size in (plan.total_held - states, states + plan.gradients, plan.peak)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Plan the recipes that are asked for."""
    chosen = sys.argv[1:] or [name for name in recipe_names(recipe_folder()) if name.split("/")[0] in OF_THE_HUB]
    with tempfile.TemporaryDirectory() as project:
        hub = Path(os.environ["HF_HOME"], "hub")
        fill_hub(hub)
        write_project(Path(project), hub)
        os.chdir(project)
        for recipe in chosen:
            print(row(recipe), flush=True)


if __name__ == "__main__":
    main()
