"""Exactly the steps run again whose settings, files or models are others than they were."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.errors import AlignkitError
from alignkit.launch import launch
from alignkit.pipeline.chain import Chain, run_chain, show_plan
from alignkit.pipeline.decision import Action
from alignkit.pipeline.file import read_pipeline
from alignkit.pipeline.step import run_step
from alignkit.repeat import repeat

ALL = ["sft", "reward", "ppo", "evaluate"]


def plan(*words: str, **chosen: str) -> dict[str, tuple[str, str]]:
    decisions = Chain.of(read_pipeline(["config=chain.yaml", *words]), **chosen).plan()
    return {name: (str(decision.action), str(decision)) for name, decision in decisions.items()}


def to_run(*words: str) -> list[str]:
    return [name for name, (action, _) in plan(*words).items() if action != Action.skip]


def replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    Path(path).write_text(text.replace(old, new, 1), encoding="utf-8")


def change_record(step: str, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    path = Path("runs/chain", step, "run.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def spoil(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[-1] ^= 1
    Path(path).write_bytes(content)


TOUCHED = {
    "nothing": (lambda: None, []),
    "a comment of the file": (lambda: replace("chain.yaml", "# a comment", "# another"), []),
    "what changes no bit": (lambda: replace("chain.yaml", "samples: 1", "samples: 2"), []),
    "a row": (lambda: replace("rows.jsonl", "one, two", "one, too"), ALL),
    "a pair": (lambda: replace("pairs.jsonl", "one, two", "one, too"), ["reward", "ppo", "evaluate"]),
    "a prompt": (lambda: replace("prompts.jsonl", "Say one", "Tell one"), ["ppo", "evaluate"]),
    "a reward": (lambda: replace("rewards.py", "/ 10", "/ 11"), ["ppo", "evaluate"]),
    "what a reward imports": (lambda: replace("lengths.py", "len(text)", "len(text) + 1"), ["ppo", "evaluate"]),
    "a template": (lambda: replace("mine.jinja", "Q:", "Question:"), ALL),
    "the weights of the base": (lambda: spoil("runs/sft/base/model.safetensors"), ALL),
    "the weights of a step": (lambda: spoil("runs/chain/reward/model.safetensors"), ["reward", "ppo", "evaluate"]),
    "a result that is gone": (lambda: Path("runs/chain/evaluate/evaluate.json").unlink(), ["evaluate"]),
    "a setting of the first": (lambda: replace("chain.yaml", "limit: 40", "limit: 30"), ALL),
    "a setting of the last": (lambda: replace("chain.yaml", "num_samples: 1", "num_samples: 2"), ["evaluate"]),
    "an argument of the last": (
        lambda: replace("chain.yaml", 'models: ["${run:sft}", "${run:ppo}"]', 'models: ["${run:sft}"]'),
        ["evaluate"],
    ),
    "the version": (lambda: change_record("ppo", lambda record: record["versions"].update(alignkit="0.0.1")), ALL[2:]),
    "a run that was killed": (lambda: change_record("reward", lambda record: record.update(status="running")), ALL[1:]),
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("touched", TOUCHED)
def test_exactly_the_right_steps_run_again(touched: str) -> None:
    touch, steps = TOUCHED[touched]
    touch()
    assert to_run() == steps


@pytest.mark.usefixtures("project")
def test_a_step_says_why_it_runs() -> None:
    assert plan("ppo.ppo.kl_coef=0.5", "evaluate.num_prompts=3") == {
        "sft": ("skip", "nothing has changed"),
        "reward": ("skip", "nothing has changed"),
        "ppo": ("run", "ppo.kl_coef was 0.05 and is 0.5"),
        "evaluate": ("run", "ppo runs before it"),
    }
    replace("pairs.jsonl", "one, two", "one, too")
    change_record("sft", lambda record: record.update(status="interrupted"))
    change_record("ppo", lambda record: record["versions"].update(alignkit="0.0.1"))
    assert plan(only="sft") == {"sft": ("resume", "it was interrupted")}
    change_record("sft", lambda record: record.update(status="finished"))
    assert plan(only="reward") == {"reward": ("run", "the data train pairs.jsonl has changed")}
    assert plan(only="ppo")["ppo"][1].startswith("alignkit was 0.0.1 and is ")


@pytest.mark.usefixtures("project")
def test_from_and_only_run_again_what_has_not_changed() -> None:
    assert plan(start="ppo") == {"ppo": ("run", "asked for"), "evaluate": ("run", "ppo runs before it")}
    assert plan(only="reward") == {"reward": ("run", "asked for")}


@pytest.mark.usefixtures("project")
def test_a_step_that_is_left_out_and_would_run_is_named() -> None:
    replace("pairs.jsonl", "one, two", "one, too")
    pipeline = read_pipeline(["config=chain.yaml"])
    outdated = {name: str(decision) for name, decision in Chain.of(pipeline, only="ppo").outdated().items()}
    assert outdated == {"reward": "the data train pairs.jsonl has changed"}
    assert show_plan(Chain.of(pipeline, only="ppo"), as_json=True) == [
        {"step": "reward", "does": "take", "would": "run", "why": ["the data train pairs.jsonl has changed"]},
        {"step": "ppo", "does": "run", "why": ["asked for"]},
    ]
    assert Chain.of(pipeline, only="reward").outdated() == {}  # sft has not changed, and on reward it does not build
    assert Chain.of(pipeline).outdated() == {}
    replace("rows.jsonl", "one, two", "one, too")
    assert {*Chain.of(pipeline, start="evaluate").outdated()} == {"sft", "reward", "ppo"}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("chosen", [{"start": "ppo"}, {"only": "ppo"}])
def test_what_a_chosen_step_starts_from_must_have_finished(chosen: dict[str, str]) -> None:
    change_record("reward", lambda record: record.update(status="interrupted"))
    told = "ppo starts from reward, which has not finished (interrupted): runs/chain/reward; run it first, without --"
    with pytest.raises(AlignkitError, match=re.escape(told)):
        plan(**chosen)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("file", ["runs/chain/ppo/run.json", "runs/chain/pipeline.json"])
def test_what_a_later_alignkit_wrote_is_refused(file: str) -> None:
    record = json.loads(Path(file).read_text()) if Path(file).exists() else {}
    Path(file).write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(AlignkitError, match="was written by a later alignkit"):
        plan()


@pytest.mark.slow
def test_steps_whose_parent_came_out_the_same_are_skipped(project: Path) -> None:
    """Byte for byte: the weights are written anew, and what starts from them is as it was."""
    before = (project / "runs/chain/sft/model.safetensors").read_bytes()
    spoil("runs/chain/sft/model.safetensors")
    record = run_chain(Chain.of(read_pipeline(["config=chain.yaml"])))
    assert {name: step["did"] for name, step in record["steps"].items()} == {
        "sft": "run",
        "reward": "skip",
        "ppo": "skip",
        "evaluate": "skip",
    }
    assert (project / "runs/chain/sft/model.safetensors").read_bytes() == before
    assert json.loads((project / "runs/chain/pipeline.json").read_text())["status"] == "finished"


COMMANDS = {
    "compare": "command: compare, models: [runs/sft/base, runs/chain/sft], prompts: prompts.jsonl",
    "merge": "command: merge, model: {name: runs/sft/adapter}",
}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("command", "file", "reads"),
    [
        ("compare", "compare.json", "prompts.jsonl"),
        ("merge", "model.safetensors", "runs/sft/adapter/adapter_config.json"),
    ],
)
def test_a_command_runs_again_where_what_it_reads_has_changed(command: str, file: str, reads: str) -> None:
    if command == "merge":
        of_base = ["model=run", "model.name=runs/sft/base", "template=native", "lora=all_linear", "samples=0"]
        launch("sft", ["name=adapter", *of_base, "data.path=rows.jsonl", "train.max_steps=1", "train.report_to=none"])
    Path("asks.yaml").write_text(f"name: asks\nsteps:\n  ask: {{{COMMANDS[command]}}}\n")
    pipeline = read_pipeline(["config=asks.yaml"])
    run_step(pipeline, pipeline.steps[0])
    assert Path("runs/asks/ask", file).is_file()
    assert str(Chain.of(pipeline).plan()["ask"]) == "nothing has changed"
    Path(reads).write_text(Path(reads).read_text() + "\n")
    assert Chain.of(pipeline).plan()["ask"].action == Action.run


@pytest.mark.usefixtures("project")
def test_a_step_is_repeated_from_its_record_which_names_the_step_it_starts_from() -> None:
    record = json.loads(Path("runs/chain/reward/run.json").read_text())
    assert record["job"]["model"]["name"] == "${run:sft}"
    assert record["parents"][0]["path"] == "../sft"
    assert repeat(Path("runs/chain/reward")).is_same
