"""Every YAML file that ships can be launched as its own first lines say."""

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import omegaconf
import pytest
from omegaconf import OmegaConf

import alignkit
from alignkit.config import MISSING
from alignkit.jobs import JOBS, SftJob, StageJob
from alignkit.launch import compose_job, launch
from alignkit.mistakes import GROUPS, group_options
from alignkit.pipeline.check import compose_all
from alignkit.pipeline.file import read_pipeline
from alignkit.sampling.settings import DRAW_SETTINGS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(alignkit.__file__).parent
PIPELINES = sorted(ROOT.glob("configs/pipeline/*.yaml"))
RECIPES = sorted({*ROOT.glob("configs/**/*.yaml")} - {*PIPELINES})
SHIPPED = sorted([*PACKAGE.glob("conf/**/*.yaml"), *PACKAGE.glob("demo/recipes/*.yaml")])
OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]


def name(path: Path) -> str:
    return "/".join(path.parts[-3:])


def contents(path: Path) -> dict[str, Any]:
    """As OmegaConf reads it, where 1e-3 is a number."""
    found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(found, dict)
    return found


def opening(path: Path) -> str:
    """The comment a file begins with, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.removeprefix("#").strip() for line in comment)


def launched(path: Path) -> list[str]:
    """The words after `alignkit` in a recipe's `Launch:` line."""
    found = re.search(r"Launch: alignkit (.*)$", opening(path))
    assert found, f"{name(path)} does not say how to launch it"
    return shlex.split(found[1])


def test_there_are_recipes_to_test() -> None:
    assert {path.parent.name for path in RECIPES} >= {"smoke", "sft", "sweep"}
    assert len(OPTIONS) > 20


@pytest.mark.parametrize("path", [*RECIPES, *PIPELINES, *SHIPPED], ids=name)
def test_a_file_begins_with_what_it_is(path: Path) -> None:
    assert re.match(r"\w[^.]+[.:]", opening(path)), "a comment with what it is comes first"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_says_what_it_needs_and_composes_as_it_is_launched(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a recipe is found by name from anywhere
    assert re.search(r"Needs: \w", opening(path))
    stage, *words = launched(path)
    assert f"config={path.parent.name}/{path.stem}" in words
    job = compose_job(stage, [word for word in words if not word.startswith("--")])
    assert isinstance(job, JOBS[stage])
    content = contents(path)
    assert ("--multirun" in words) == ("sweeper" in content.get("hydra", {}))
    for section, values in content.items():
        if isinstance(values, dict) and section != "hydra":
            composed = getattr(job, section)
            found = composed if isinstance(composed, dict) else asdict(composed)
            own = {key: value for key, value in values.items() if not any(f"{section}.{key}=" in w for w in words)}
            assert {key: found[key] for key in own} == own


@pytest.mark.parametrize("path", PIPELINES, ids=name)
def test_a_pipeline_composes_as_it_is_launched(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.search(r"Needs: \w", opening(path))
    command, *words = launched(path)
    assert (command, words) == ("run", [f"config=pipeline/{path.stem}"])
    steps = compose_all(read_pipeline(words))
    assert list(steps) == list(contents(path)["steps"])


@pytest.mark.parametrize(
    ("stage", "rows"),
    [("sft", "word_tasks.jsonl"), *((stage, "manners_pairs.jsonl") for stage in ("reward", "ppo", "dpo"))],
)
def test_a_recipe_of_the_demo_composes(stage: str, rows: str) -> None:
    start = [] if stage == "sft" else ["model.name=runs/demo/sft"]
    job = compose_job(stage, [f"config={PACKAGE / 'demo' / 'recipes' / f'{stage}.yaml'}", *start])
    assert (job.name, Path(job.data.path).name) == ("demo", rows)
    assert job.model.name == ("tiny_gpt2" if stage == "sft" else "runs/demo/sft")


def test_two_recipes_never_share_a_run_directory() -> None:
    names = [contents(path)["name"] for path in [*RECIPES, *PIPELINES]]
    assert len(names) == len(set(names))
    assert "default" not in names


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "sweep"], ids=name)
def test_every_combination_of_a_sweep_composes(path: Path) -> None:
    content = contents(path)
    for key, values in content["hydra"]["sweeper"]["params"].items():
        jobs = [compose_job("sft", [f"config={path}", f"{key}={value}"]) for value in values.split(",")]
        assert len({json.dumps(job.train) for job in jobs}) == len(jobs) > 1


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (path.stem == "grpo"), id=name(path))  # docs/ppo.md runs it, too
        for path in RECIPES
        if path.parent.name == "smoke"
    ],
)
def test_a_smoke_recipe_runs_from_any_folder_in_moments(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fewer = {"sft": ["samples=1", "sampling.max_new_tokens=8"], "dpo": ["samples=1", "sampling.max_new_tokens=8"]}
    stage = launched(path)[0]
    launch(stage, [f"config={path}", *fewer.get(stage, [])])
    content = contents(path)
    run_dir = tmp_path / "runs" / stage / content["name"]
    assert json.loads((run_dir / "run.json").read_text())["status"] == "finished"
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    measure, sign = ("eval_score", -1) if stage == "ppo" else ("eval_loss", 1)
    held_out = [sign * line[measure] for line in metrics if measure in line]
    assert held_out[-1] < held_out[0]
    assert (run_dir / "model.safetensors").stat().st_size > 1_000_000


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=[f"{group}={option}" for group, option in OPTIONS])
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    basis = ["model.name=m", "data.path=d"]
    content = contents(PACKAGE / "conf" / group / f"{option}.yaml")
    kept = [
        word for word in basis if not word.startswith(group) or word.partition(".")[2].partition("=")[0] not in content
    ]
    job = compose_job("sft", [*kept, f"{group}={option}"])
    section = getattr(job, group)
    found = section if isinstance(section, dict) else vars(section)
    plain = {key: value for key, value in content.items() if not str(value).startswith("${")}
    assert {key: found[key] for key in plain} == plain
    if group == "lora":
        assert section == content  # an option is all of the section


@pytest.mark.parametrize("option", group_options("data"))
def test_the_rows_that_ship_are_found_wherever_the_package_is(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = compose_job("sft", ["model=tiny_gpt2", f"data={option}"]).data
    for path in (data.path, data.eval_path):
        assert Path(path).is_absolute()
        assert Path(path).is_file()


@pytest.mark.parametrize("stage", JOBS)
def test_every_stage_has_its_defaults(stage: str) -> None:
    assert (PACKAGE / "conf" / f"{stage}.yaml").is_file() == issubclass(JOBS[stage], StageJob)
    path = ["data.path=d"] if hasattr(getattr(JOBS[stage](), "data", None), "path") else []
    assert isinstance(compose_job(stage, ["model=tiny_gpt2", *path]), JOBS[stage])


@pytest.mark.parametrize("stage", JOBS)
def test_a_job_built_in_python_is_the_one_that_is_composed(stage: str) -> None:
    built = JOBS[stage]()
    built.model.name = "m"
    words = ["model.name=m"]
    if hasattr(getattr(built, "data", None), "path"):
        built.data.path = "d"
        words.append("data.path=d")
    assert built == compose_job(stage, words)


def test_what_is_given_to_a_job_in_python_is_laid_over_the_stages_own_choices() -> None:
    job = SftJob(train={"save_total_limit": 5, "learning_rate": 1e-4})
    assert job.train == {"gradient_checkpointing": False, "save_total_limit": 5, "learning_rate": 1e-4}
    assert SftJob().train == {"gradient_checkpointing": False, "save_total_limit": 2}


@pytest.mark.parametrize("option", group_options("sampling"))
def test_an_option_of_sampling_is_all_of_a_draw(option: str) -> None:
    """So that what a command draws by, where nothing is chosen, leaves no trace beside it."""
    assert contents(PACKAGE / "conf" / "sampling" / f"{option}.yaml").keys() == {"do_sample", *DRAW_SETTINGS}


def test_a_missing_setting_is_spelled_as_omegaconf_spells_it() -> None:
    assert MISSING == omegaconf.MISSING


def test_every_shipped_template_has_its_option() -> None:
    files = {path.stem for path in PACKAGE.glob("conf/template/*.jinja")}
    assert set(group_options("template")) == files | {"native"}
