"""What other programs are told of a run, and the page that is written of it."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from alignkit.commands import merge
from alignkit.commands.export import run
from alignkit.config import ModelConfig, TemplateConfig
from alignkit.errors import AlignkitError, ConfigError
from alignkit.evaluate.model_card import MARK
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.serving import Serving, converted, ollama_template, vllm
from alignkit.jobs import MergeJob
from alignkit.models.source import ModelSource


def exported(folder: Path, to: str, capsys: pytest.CaptureFixture[str], *, overwrite: bool = False) -> str:
    capsys.readouterr()
    run(str(folder), to=to, overwrite=overwrite)
    return capsys.readouterr().out.replace("\\\n", "")


def problems(folder: Path, to: str) -> list[str]:
    with pytest.raises(AlignkitError) as caught:
        run(str(folder), to=to, overwrite=False)
    assert caught.value.exit_status == 2
    return list(caught.value.problems)


@pytest.fixture
def full(run_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_dir, tmp_path / "full")


@pytest.fixture
def adapter(adapter_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(adapter_dir, tmp_path / "my adapter")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_vllm_gets_the_folder_of_full_weights(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((full / "run.json").read_text())
    record["job"]["template"]["kwargs"] = {"mood": "it's"}
    (full / "run.json").write_text(json.dumps(record))
    template = full / "chat_template.jinja"
    template.write_text(template.read_text() + "{%- if mood is defined -%}{%- endif -%}")
    (full / "checksums.json").unlink()
    change(full / "run.json", format=1)
    assert shlex.split(exported(full, "vllm", capsys)) == [
        *["vllm", "serve", str(full), "--served-model-name", "full"],
        *["--default-chat-template-kwargs", '{"mood": "it\'s"}'],
    ]


def test_vllm_gets_the_base_of_an_adapter_with_the_template_and_the_stop_tokens_of_the_run(
    adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shlex.split(exported(adapter, "vllm", capsys)) == [
        *["vllm", "serve", str(adapter / "base"), "--enable-lora", "--max-lora-rank", "16"],
        *["--lora-modules", f"my adapter={adapter}"],
        *["--chat-template", str(adapter / "chat_template.jinja"), "--generation-config", str(adapter)],
    ]


def test_a_base_of_the_hub_is_named_with_its_commit_and_fetched_for_llama_cpp(adapter: Path) -> None:
    policy = ServedModel.of(ModelConfig(str(adapter)), TemplateConfig("native"))
    shutil.rmtree(adapter / "base")
    config = adapter / "adapter_config.json"
    change(config, rank_pattern={"c_fc": 17}, base_model_name_or_path="org/base", revision="abc123")
    serving = Serving(adapter, ModelSource.of(ModelConfig(str(adapter))), policy)
    (command,) = vllm(serving)
    assert command.replace("\\\n", "").split()[:8] == [
        *["vllm", "serve", "org/base", "--revision", "abc123", "--enable-lora", "--max-lora-rank", "32"]
    ]
    fetch, convert, _ = converted(serving)
    assert fetch.replace("\\\n", "").split() == [
        "hf",
        "download",
        "org/base",
        "--revision",
        "abc123",
        "--local-dir",
        "base",
    ]
    assert convert == "python llama.cpp/convert_hf_to_gguf.py base --outfile 'my adapter-base.gguf'"


def test_llama_cpp_converts_base_and_adapter(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = exported(adapter, "llama.cpp", capsys).splitlines()
    base = str(adapter / "base")
    assert [shlex.split(line) for line in lines] == [
        ["python", "llama.cpp/convert_hf_to_gguf.py", base, "--outfile", "my adapter-base.gguf"],
        [
            *["python", "llama.cpp/convert_lora_to_gguf.py", str(adapter)],
            *["--base", base, "--outfile", "my adapter-lora.gguf"],
        ],
        [
            *["llama-server", "--model", "my adapter-base.gguf", "--alias", "my adapter", "--jinja"],
            *["--lora", "my adapter-lora.gguf", "--chat-template-file", str(adapter / "chat_template.jinja")],
        ],
    ]


@pytest.mark.parametrize(("to", "is_said"), [("llama.cpp", True), ("ollama", True), ("vllm", False)])
def test_a_tokenizer_of_bytes_that_the_converter_refuses_is_named(
    full: Path, to: str, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run(str(full), to=to, overwrite=False)
    assert (f"{full} reads bytes, as tiny models do: llama.cpp's converter" in capsys.readouterr().err) == is_said


def test_ollama_gets_a_template_that_a_shell_writes_as_it_is(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert, write, create = re.split(r"\n(?=cat|ollama)", exported(full, "ollama", capsys).strip())
    assert convert == f"python llama.cpp/convert_hf_to_gguf.py {full} --outfile full.gguf"
    assert create == "ollama create full --file Modelfile"
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-c", write], check=True)
    assert Path("Modelfile").read_text() == (
        "FROM ./full.gguf\n"
        'TEMPLATE """{{ if .System }}{{ .System }}\n\n{{ end }}### Instruction:\n{{ .Prompt }}\n\n'
        '### Response:\n{{ .Response }}<|eos|>\n\n"""\n'
        'PARAMETER stop "<|eos|>"\n'
    )


@pytest.mark.parametrize("name", ["chatml", "human_assistant", "instruction", "user_bot", "question_answer"])
def test_the_template_of_ollama_gives_the_text_of_the_training(run_dir: Path, name: str) -> None:
    policy = ServedModel.of(ModelConfig(str(run_dir)), TemplateConfig(name))
    turns = [("One?", "1"), ("Two?", "2"), ("Three?", "")]
    rendered = re.sub(r"{{ if \.System }}.*?{{ end }}", "", ollama_template(policy), flags=re.DOTALL)
    *closed, (last, _) = turns
    turn = rendered.replace("{{ if .Response }}", "").replace("{{ end }}", "")
    ours = "".join(turn.replace("{{ .Prompt }}", asked).replace("{{ .Response }}", said) for asked, said in closed)
    ours += re.split(r"{{ (?:if )?\.Response }}", rendered)[0].replace("{{ .Prompt }}", last)
    roles = ("user", "assistant")
    messages = [{"role": roles[i], "content": turn[i]} for turn in turns for i in range(2)]
    tokenizer = AutoTokenizer.from_pretrained(run_dir)
    assert ours == tokenizer.apply_chat_template(
        messages[:-1], chat_template=policy.template.jinja, add_generation_prompt=True, tokenize=False
    )


def test_a_template_that_writes_a_turn_otherwise_later_is_refused_for_ollama(run_dir: Path, tmp_path: Path) -> None:
    jinja = tmp_path / "numbered.jinja"
    jinja.write_text(
        "{% for message in messages %}{% if message.role == 'user' %}{{ loop.index }}: {{ message.content }}\n"
        "{% else %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    with pytest.raises(ConfigError, match="otherwise where another one follows"):
        ollama_template(ServedModel.of(ModelConfig(str(run_dir)), TemplateConfig(file=str(jinja))))


def test_the_page_has_front_matter_data_settings_figures_and_lineage(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = exported(adapter, "hub", capsys) and (adapter / "README.md").read_text()
    front = yaml.safe_load(page.split("---\n")[1])
    assert front == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["alignkit", "sft"]}
    inputs = json.loads((adapter / "run.json").read_text())["inputs"]["data"]
    assert f"| train rows.jsonl | `{inputs['train rows.jsonl']}` |" in page
    assert "- my adapter: sft\n  - random weights\n" in page
    assert re.search(r"^\| train_loss \|  \| [\d.]+ \|  \|$", page, re.MULTILINE)
    assert str(tmp_path) not in page
    out = tmp_path / "merged"
    merge.run(MergeJob(ModelConfig(str(adapter))), out=out)
    exported(out, "vllm", capsys)
    merged = (out / "README.md").read_text()
    assert f"| train rows.jsonl | `{inputs['train rows.jsonl']}` |" in merged
    assert "- merged: merge\n  - my adapter: sft (`model.name`)\n    - random weights\n" in merged


def test_the_page_names_the_base_of_the_hub_and_the_license_in_its_page(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((full / "run.json").read_text())
    record["job"]["model"] = {"name": "org/base", "init": "pretrained"}
    record["inputs"]["models"] = {"model.name org/base": "abc123"}
    (full / "run.json").write_text(json.dumps(record))
    exported(full, "hub", capsys)
    page = (full / "README.md").read_text()
    assert yaml.safe_load(page.split("---\n")[1])["base_model"] == "org/base"
    assert "The license of the base was not known" in page
    assert "  - [org/base](https://huggingface.co/org/base) at commit `abc123`\n" in page
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    record["job"]["model"]["name"] = str(base)
    (full / "run.json").write_text(json.dumps(record))
    exported(full, "hub", capsys)
    front = yaml.safe_load((full / "README.md").read_text().split("---\n")[1])
    assert front["license_name"] == "own"
    assert "base_model" not in front


def test_the_page_of_a_run_whose_parent_is_gone_says_so(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parents = [{"setting": "model.name", "path": "../gone", "sha256": ""}]
    record = json.loads((full / "run.json").read_text())
    record["job"]["model"] = {"name": "runs/gone", "init": "pretrained"}
    (full / "run.json").write_text(json.dumps(record | {"parents": parents}))
    exported(full, "hub", capsys)
    page = (full / "README.md").read_text()
    assert "it began with `gone`." in page
    assert "- full: sft\n  - gone: a run that was gone when this page was written (`model.name`)\n\n" in page
    assert "base_model" not in page


def test_a_page_of_somebody_else_is_kept(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (full / "README.md").write_text("# Mine\n")
    run(str(full), to="vllm", overwrite=False)
    assert "is left as it is: alignkit did not write it; --overwrite replaces it" in capsys.readouterr().err
    assert (full / "README.md").read_text() == "# Mine\n"
    exported(full, "vllm", capsys, overwrite=True)
    assert MARK in (full / "README.md").read_text()
    exported(full, "vllm", capsys)  # our own


def test_what_cannot_be_exported_is_refused_at_once(full: Path, adapter: Path, tmp_path: Path) -> None:
    assert problems(tmp_path / "nowhere", "vlm") == [
        "--to vlm: choose vllm, llama.cpp, ollama, hub; did you mean 'vllm'?",
        f"there is no folder {tmp_path / 'nowhere'}",
    ]
    change(adapter / "adapter_config.json", use_dora=True, bias="all")
    assert problems(adapter, "llama.cpp") == [
        f"--to llama.cpp: the adapter {adapter} has {what} beside LoRA, which llama.cpp does not load: "
        f"alignkit merge {adapter} FOLDER, and export that"
        for what in ("DoRA", "biases")
    ]
    change(full / "run.json", status="failed")
    assert problems(full, "vllm") == [f"{full} is an unfinished run (failed): go on with resume=true"]
    assert not (full / "README.md").exists()
