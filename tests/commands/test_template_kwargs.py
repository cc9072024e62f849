"""The arguments of its template that a run was trained with go with it: every later command renders with them."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.cli import app
from alignkit.commands import merge
from alignkit.commands.verify import examine
from alignkit.config import ModelConfig, TemplateConfig
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import ConfigError
from alignkit.evaluate.served_model import ServedModel
from alignkit.jobs import MergeJob
from alignkit.launch import compose_job
from alignkit.rewards.reward_run import RewardRun
from alignkit.runs.manifest import MANIFEST
from alignkit.stages.reward import run as reward

JINJA = """
{%- set cue = "assistant: " if enable_thinking | default(true) else "assistant, at once: " -%}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}{{ cue }}{% generation %}{{ message.content + end }}{% endgeneration %}
{%- else -%}{{ message.role }}: {{ message.content }}{{ "\\n" }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ cue }}{%- endif -%}
"""
OFF = "template.kwargs.enable_thinking=false"
THINKING, AT_ONCE = "user: Hi\nassistant: ", "user: Hi\nassistant, at once: "

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("template") / "cue.jinja"
    path.write_text(JINJA)
    return f"template.file={path}"


@pytest.fixture(scope="module")
def at_once(train: Train, template: str) -> Path:
    return train("at_once", template, OFF, "lora=all_linear", steps=1)


def prompt(folder: Path, **kwargs: bool) -> str:
    served = ServedModel.of(ModelConfig(str(folder)), TemplateConfig(kwargs=kwargs))
    (ids,) = served.encode([("Hi", Conversation((Message("user", "Hi"),)))])
    return served.decode(ids)


def found(folder: Path) -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.verdict, finding.detail) for finding in examine(folder, ModelConfig(str(folder)))}


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a run says of the arguments."""
    return [line for line in capsys.readouterr().out.splitlines() if "kwargs" in line or line.startswith("arguments")]


def test_a_command_has_them_and_its_own_come_on_top(at_once: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prompt(at_once) == AT_ONCE
    assert prompt(at_once, enable_thinking=True) == THINKING
    words = ["generate", str(at_once), "--prompt", "Hi", "sampling.max_new_tokens=1"]
    for more, expected in ([], AT_ONCE), (["template.kwargs.enable_thinking=true"], THINKING):
        app([*words, *more], standalone_mode=False)
        assert capsys.readouterr().out.startswith(expected)


def test_another_template_has_none_of_them(at_once: Path) -> None:
    served = ServedModel.of(ModelConfig(str(at_once)), TemplateConfig("chatml"))
    assert "enable_thinking" not in served.template.variables


def test_what_is_merged_keeps_them_where_its_adapter_is_not(at_once: Path, tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    shutil.copytree(at_once, adapter)
    merge.run(MergeJob(ModelConfig(str(adapter))), out=merged)
    shutil.rmtree(adapter)
    assert prompt(merged) == AT_ONCE
    assert found(merged)["prompts"][0] == "ok"


def test_verify_renders_with_them_and_says_what_a_server_needs(at_once: Path) -> None:
    findings = found(at_once)
    flag = """--default-chat-template-kwargs '{"enable_thinking": false}'"""
    assert findings["arguments"] == ("-", f"a server needs {flag}")
    assert findings["template"][0] == findings["prompts"][0] == "ok"


def test_a_run_says_so_and_one_that_goes_on_says_where_it_differs(
    at_once: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["model=run", f"model.name={at_once}", "template=native"]
    own = train("same", *start, OFF, steps=1)
    line = '{"enable_thinking": false} of the template, in every row that has none of its own'
    assert said(capsys) == [f"arguments {line}"]
    assert prompt(own) == AT_ONCE
    other = train("other", *start, steps=1)
    differs = f'{at_once} was trained with template.kwargs={{"enable_thinking": false}}; this run has {{}}'
    assert said(capsys) == [differs]
    assert prompt(other) == THINKING
    findings = found(other)
    assert findings["prompts"][0] == "ok"
    assert "arguments" not in findings


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra eval")
def test_tasks_are_asked_with_them(at_once: Path) -> None:
    from alignkit.evaluate.harness import TrainedModel

    for kwargs, expected in ({}, AT_ONCE), ({"enable_thinking": True}, THINKING):
        policy = ServedModel.of(ModelConfig(str(at_once)), TemplateConfig(kwargs=kwargs)).load(seed=0)
        assert TrainedModel(policy, 1).apply_chat_template([{"role": "user", "content": "Hi"}]) == expected


def test_a_reward_run_reads_with_them(template: str, write_rows: Callable[..., Path], tmp_path: Path) -> None:
    pairs = write_rows([{"prompt": "Hi", "chosen": "Yes!", "rejected": "no"}] * 2)
    words = ["model=tiny_gpt2", f"data.path={pairs}", template, OFF, "train.max_steps=1", "train.report_to=none"]
    reward.run(compose_job("reward", words), tmp_path / "rm")
    read = RewardRun(ModelConfig(str(tmp_path / "rm"))).template
    assert read.text(Conversation((Message("user", "Hi"),)), add_generation_prompt=True) == AT_ONCE
    assert "(messages, tokenize=False, enable_thinking=False)\n" in (tmp_path / "rm" / "README.md").read_text()


def test_an_interpolation_in_the_record_is_no_value(at_once: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(at_once, copy)
    record = json.loads((copy / MANIFEST).read_text())
    record["job"]["template"]["kwargs"] = {"enable_thinking": "${oc.env:THINK}"}
    (copy / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(ConfigError) as caught:
        prompt(copy)
    assert str(caught.value) == (
        f"template.kwargs.enable_thinking: {copy} was trained with ${{oc.env:THINK}}, of which the value was not kept: "
        "give it"
    )
    assert prompt(copy, enable_thinking=False) == AT_ONCE
