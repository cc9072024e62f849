"""Tools that a model is given as a file: what it calls is shown as a call, and gets its result."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from alignkit.cli import app
from alignkit.commands.chat import Chat, open_calls, run
from alignkit.config import ModelConfig, SamplingConfig, TemplateConfig
from alignkit.data.rows.conversation import Message
from alignkit.errors import AlignkitError, ConfigError
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.tools_file import read_tools_file
from alignkit.launch import compose_job

TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
TYPED = {"type": "function", "function": TOOL}
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
ROW = {
    "messages": [
        {"role": "user", "content": "Add 1."},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ],
    "tools": [TOOL],
}
JINJA = """
{%- for tool in tools or [] -%}{{ "tool: " + (tool | tojson) + "\\n" }}{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
{{- "assistant: " -}}{% generation %}
{%- if message.reasoning_content -%}{{ "<think>" + message.reasoning_content + "</think>" }}{%- endif -%}
{{- message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) -}}
{{- "}</tool_call>" -}}
{%- endfor -%}
{{- end -}}{% endgeneration %}
{%- else -%}
{{- message.role + ": " + message.content + "\\n" -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "assistant: " }}{%- endif -%}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "calls.jinja").write_text(JINJA)
    (folder / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 4)
    (folder / "tools.json").write_text(json.dumps([TOOL]))
    (folder / "tools.yaml").write_text("- name: add\n  parameters: {type: object, properties: {a: {type: integer}}}\n")
    return folder


@pytest.fixture(scope="module")
def caller(train: Callable[..., Path], files: Path) -> Path:
    """A run that knows the call, and the answer to its result, by heart."""
    return train("caller", f"data.path={files}/rows.jsonl", f"template.file={files}/calls.jinja", steps=120)


def talk(folder: Path, files: Path, *lines: str, hide_reasoning: bool = False) -> None:
    job = compose_job("chat", ["sampling=greedy", "sampling.max_new_tokens=80"], model={"name": str(folder)})
    typed = [f"{line}\n" for line in lines]
    run(job, runs=[str(folder)], lines=typed, tools_path=files / "tools.yaml", hide_reasoning=hide_reasoning)


def test_a_call_is_shown_and_its_result_given(
    caller: Path, files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    talk(caller, files, "Add 1.", "/result 2", "/result 3", f"/save {tmp_path}/talk.jsonl")
    wanted = "/result TEXT gives the result of add"
    shown = f'Hm.\n→ add {{"a": 1}}\n{wanted}\nIt is 2.\nno call waits for a result\n'
    assert capsys.readouterr().out.startswith(shown)
    row = json.loads((tmp_path / "talk.jsonl").read_text())
    assert row["tools"] == [TYPED]
    assert row["messages"] == [
        ROW["messages"][0],
        {**ROW["messages"][1], "tool_calls": [{"type": "function", **CALL}]},
        ROW["messages"][2],
        ROW["messages"][3],
    ]


def test_reasoning_can_be_hidden(caller: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk(caller, files, "Add 1.", hide_reasoning=True)
    assert capsys.readouterr().out.startswith('→ add {"a": 1}\n')
    words = ["generate", str(caller), "--prompt", "Add 1.", "--tools", str(files / "tools.json")]
    app([*words, "--hide-reasoning", "sampling.max_new_tokens=80"], standalone_mode=False)
    assert capsys.readouterr().out.endswith('assistant: → add {"a": 1}\n--\n')


def test_generate_gives_tools_to_prompts_without_and_writes_plain_facts(
    caller: Path, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    words = ["generate", str(caller), "--prompt", "Add 1.", "--tools", str(files / "tools.json"), "--out", str(out)]
    app([*words, "sampling.max_new_tokens=80"], standalone_mode=False)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["prompt"] == f"tool: {json.dumps(TYPED)}\nuser: Add 1.\nassistant: "
    assert line["response"] == '<think>Hm.</think><tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    with pytest.raises(AlignkitError, match="has no effect: every prompt has tools of its own"):
        app(["generate", str(caller), "--prompts", str(files / "rows.jsonl"), *words[4:6]], standalone_mode=False)
    with pytest.raises(AlignkitError, match=r"^--hide-reasoning has no effect on --out"):
        app([*words[:-1], str(tmp_path / "other.jsonl"), "--hide-reasoning"], standalone_mode=False)


def test_calls_wait_for_their_results_one_after_the_other(caller: Path) -> None:
    policy = ServedModel.of(ModelConfig(str(caller)), TemplateConfig())
    calls = tuple({"type": "function", "function": {"name": name, "arguments": {}}} for name in ("add", "sub"))
    heard = io.StringIO()
    chat = Chat([policy], SamplingConfig())
    chat.histories = [[Message("user", "Go."), Message("assistant", "", tool_calls=calls)]]
    assert open_calls(chat.histories[0]) == list(calls)
    chat.result("1", Console(file=heard))
    assert heard.getvalue() == "/result TEXT gives the result of sub\n"
    assert chat.histories[0][2:] == [Message("tool", "1", name="add")]
    assert open_calls(chat.histories[0]) == [calls[1]]
    assert open_calls([*chat.histories[0], Message("tool", "2")]) == []


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", None, "it cannot be read: No such file or directory"),
        ("a.json", "{", "it is no JSON of tools: Expecting property name"),
        ("a.yaml", "[", "it is no YAML of tools: while parsing"),
        ("a.yaml", "- {name: a, since: 2024-01-01}", "it is no YAML of tools: Object of type date is not JSON"),
        ("a.json", "[]", "it holds no tools"),
        ("a.json", '{"name": "a"}', "'tools' is an object where a list belongs"),
        ("a.json", "[{}]", "a tool has no name"),
        ("a.json", '[{"name": "a"}, {"name": "a"}]', "two tools are named a"),
    ],
)
def test_a_file_of_tools_that_is_none(tmp_path: Path, name: str, content: str | None, problem: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_tools_file(path)
    (line,) = caught.value.problems
    assert line.startswith(f"--tools {path}: {problem}")


def test_a_template_that_leaves_tools_out_is_refused_before_a_model_is_loaded(
    run_dir: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ServedModel, "load")
    refused = f"--tools {files}/tools.yaml: template native refuses tools: it leaves them out"
    line = f"{refused}; a run with data.tools=system writes them as text"
    with pytest.raises(AlignkitError) as caught:
        talk(run_dir, files, "Add 1.")
    assert caught.value.problems == (line,)
    words = ["generate", str(run_dir), "--prompt", "a", "--prompt", "b", "--tools", f"{files}/tools.yaml"]
    with pytest.raises(AlignkitError) as caught:
        app(words, standalone_mode=False)
    assert caught.value.problems == (line,)
