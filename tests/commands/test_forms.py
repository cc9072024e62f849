"""The forms in which a run wrote tools and reasoning go with it: what it is asked reads as what it was trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.choices import ToolsForm
from alignkit.cli import app
from alignkit.commands import merge
from alignkit.config import DataConfig, ModelConfig, TemplateConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import ConfigError, DataError
from alignkit.evaluate.served_model import ServedModel
from alignkit.jobs import MergeJob
from alignkit.launch import compose_job
from alignkit.rewards.reward_run import RewardRun
from alignkit.runs.manifest import MANIFEST
from alignkit.runs.template import unused_forms
from alignkit.stages.reward import run as reward

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
ROW = {
    "messages": [
        {"role": "user", "content": "Add 1."},
        {"role": "assistant", "content": "", "reasoning": "A tool adds.", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ],
    "tools": [TOOL],
}
ASKED = Conversation((Message("user", "Add 1."),), tools=({"type": "function", "function": TOOL},))
FORMS = ["data.tools=system", "data.reasoning=inline"]

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "rows.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n" * 2)
    return path


@pytest.fixture(scope="module")
def as_text(train: Train, rows_path: Path) -> Path:
    words = [f"data.path={rows_path}", "template=chatml", "lora=all_linear", "samples=1", "sampling.max_new_tokens=2"]
    return train("as_text", *words, *FORMS, steps=1)


def prompt(folder: Path, asked: Conversation = ASKED) -> str:
    served = ServedModel.of(ModelConfig(str(folder)), TemplateConfig())
    (ids,) = served.encode([("it", asked)])
    return served.decode(ids)


def test_a_prompt_with_tools_is_the_one_that_was_trained(as_text: Path, rows_path: Path) -> None:
    words = ["model=run", f"model.name={as_text}", "template=native", f"data.path={rows_path}", *FORMS]
    from alignkit.stages.sft.data import view

    (row, _) = view(compose_job("sft", words)).rows()
    assert row.as_json(ServedModel.of(ModelConfig(str(as_text)), TemplateConfig()).tokenizer)["text"].startswith(
        prompt(as_text) + "<think>\nA tool adds.\n</think>\n\nCall: "
    )


def test_forms_that_are_typed_go_over_those_of_the_training(as_text: Path) -> None:
    job = compose_job("generate", ["data.tools=native"], model={"name": str(as_text)})
    rules = ServedModel.of(job.model, job.template, chosen=job.data).rules
    assert (rules.tools, rules.reasoning) == ("native", "inline")
    job = compose_job("chat", ["data.reasoning=drop"], model={"name": str(as_text)})
    rules = ServedModel.of(job.model, job.template, chosen=job.data).rules
    assert (rules.tools, rules.reasoning) == ("system", "drop")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data.tools=text", r"^data\.tools is 'text': "),
        ("data=demo", r"^data is a section of settings: give it keys, such as data\.tools"),
        ("data.path=a", r"^unknown key 'data\.path'"),
    ],
)
def test_a_command_has_only_the_forms_of_a_data_section(word: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        compose_job("generate", [word], model={"name": "m"})


def test_generate_takes_rows_with_tools(
    as_text: Path, rows_path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    words = ["generate", str(as_text), "--prompts", str(rows_path), "--out", str(out), "sampling.max_new_tokens=1"]
    app(words, standalone_mode=False)
    first, _ = map(json.loads, out.read_text().splitlines())
    assert "Tools, one a line:" in first["prompt"]
    assert "<think>\nA tool adds.\n</think>\n\nCall: " in first["prompt"]
    assert "Result: 2" in first["prompt"]


def test_evaluate_measures_rows_in_these_forms(as_text: Path, rows_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    words = ["evaluate", str(as_text), f"data.path={rows_path}", "num_prompts=1", "num_samples=1", "--out", str(out)]
    app([*words, "sampling.max_new_tokens=1"], standalone_mode=False)
    assert json.loads(out.read_text())["runs"][0]["losses"].keys() == {
        f"{rows_path}:1",
        f"{rows_path}:2",
    }


def test_what_is_merged_keeps_them_where_its_adapter_is_not(as_text: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    shutil.copytree(as_text, adapter)
    merge.run(MergeJob(ModelConfig(str(adapter))), out=merged)
    shutil.rmtree(adapter)
    assert prompt(merged) == prompt(as_text)


def test_a_run_in_the_templates_own_forms_names_the_way_out(run_dir: Path) -> None:
    way_out = r"it leaves them out; a run with data\.tools=system writes them as text$"
    with pytest.raises(DataError, match=f"^it: template native refuses tools: {way_out}"):
        prompt(run_dir)


def test_a_run_that_goes_on_says_where_its_forms_differ(
    as_text: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    train("goes_on", "model=run", f"model.name={as_text}", "template=native", steps=1)
    said = capsys.readouterr().out
    was, now = ("data.tools=system data.reasoning=inline", "data.tools=native data.reasoning=native")
    assert f"{as_text} was trained with {was}; this run has {now}" in said


def test_a_reward_run_reads_in_its_own(tmp_path: Path) -> None:
    side = {"role": "assistant", "content": "2"}
    pair = {"prompt": ROW["messages"][:1], "chosen": [side], "rejected": [{**side, "content": "3"}], "tools": [TOOL]}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(pair)}\n" * 4)
    words = ["model=tiny_gpt2", "template=chatml", f"data.path={tmp_path}/pairs.jsonl", "train.max_steps=1", *FORMS]
    reward.run(compose_job("reward", [*words, "train.report_to=none"]), tmp_path / "judge")
    run = RewardRun(ModelConfig(str(tmp_path / "judge")))
    assert (run.rules.tools, run.rules.reasoning) == ("system", "inline")
    app(["score", str(tmp_path / "judge"), "--pairs", str(tmp_path / "pairs.jsonl")], standalone_mode=False)


def test_a_form_that_a_record_lacks_is_named(as_text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(as_text, folder)
    record = json.loads((folder / MANIFEST).read_text())
    record["job"]["data"]["tools"] = "${oc.env:FORM}"
    (folder / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(
        ConfigError, match=r"^data\.tools: .* was trained with \$\{oc\.env:FORM\}, of which the form was"
    ):
        ServedModel.of(ModelConfig(str(folder)), TemplateConfig(), check=False)


def test_a_form_that_no_model_uses_is_refused(tmp_path: Path) -> None:
    for name, tools in (("as_text", "system"), ("native", "native")):
        (tmp_path / name).mkdir()
        record = {"status": "finished", "job": {"data": {"tools": tools}}}
        (tmp_path / name / MANIFEST).write_text(json.dumps(record))
    text, native = str(tmp_path / "as_text"), str(tmp_path / "native")
    chosen = DataConfig(path="rows.jsonl", tools=ToolsForm.system)
    refused = ["data.tools=system has no effect: prompts are written as in the training of the run"]
    assert unused_forms([native], chosen) == refused
    assert unused_forms([text, native], chosen) == []
    assert unused_forms([native, "org/model"], chosen) == []
    assert unused_forms([native], DataConfig(path="rows.jsonl")) == []
