"""`generate`, `compare` and `evaluate` with servers: the same prompts and stop tokens, answers that say so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkit.commands import compare, evaluate, generate
from alignkit.errors import ConfigError
from alignkit.launch import compose_job
from serving import Serve
from tiny_vllm import TinyVllm

WARM = ["sampling.do_sample=true", "sampling.temperature=0.7", "sampling.max_new_tokens=6", "template=instruction"]


@pytest.fixture
def run_dir(base: Path, adapted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an adapter."""
    monkeypatch.chdir(tmp_path)
    adapted.save_pretrained("mine")
    for file in base.glob("*token*"):
        shutil.copy(file, "mine")
    return Path("mine")


def answered(name: Path, *words: str) -> list[dict[str, Any]]:
    job = compose_job("generate", [*WARM, "num_samples=2", *words], model={"name": str(name), "dtype": "float32"})
    generate.run(job, prompts=["Say one.", "Say two."], prompts_path=None, out=Path("out.jsonl"))
    return [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


def test_generate_asks_servers_what_it_would_ask_itself(
    run_dir: Path, base: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = TinyVllm(base)
    url = serve(tiny)
    rows = answered(run_dir, "engine.name=vllm", f"engine.servers=[{url}]")
    assert [(row["source"], row["sample"]) for row in rows] == [
        (s, k) for s in ("--prompt 1", "--prompt 2") for k in (0, 1)
    ]
    assert {row["engine"] for row in rows} == {"vLLM 0.32.0"}
    assert f"mine is answered for by vLLM 0.32.0 at {url}" in capsys.readouterr().err
    assert {body["model"] for body in tiny.asked} == set(tiny.names)
    assert tiny.names[0].startswith("mine-")
    assert tiny.adapters == []
    Path("out.jsonl").unlink()
    own = answered(run_dir)
    assert [row["prompt"] for row in own] == [row["prompt"] for row in rows]
    assert "engine" not in own[0]
    assert len({body["seed"] for body in tiny.asked}) == 4
    assert all(258 in body["stop_token_ids"] for body in tiny.asked)


def test_a_server_of_another_folder_is_refused(run_dir: Path, other: Path, base: Path, serve: Serve) -> None:
    tiny = TinyVllm(base)
    tiny.folder = other
    with pytest.raises(ConfigError, match=f"serves {other}, not {base}: start it with --model {base}"):
        answered(run_dir, "engine.name=vllm", f"engine.servers=[{serve(tiny)}]")
    with pytest.raises(ConfigError, match=r"deterministic_rows=true with engine\.name=vllm"):
        answered(run_dir, "engine.name=vllm", "engine.servers=['http://a']", "deterministic_rows=true")


def test_compare_and_evaluate_name_the_engine_beside_the_model(
    run_dir: Path, base: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = TinyVllm(base)
    words = [*WARM, "engine.name=vllm", f"engine.servers=[{serve(tiny)}]"]
    runs = [str(run_dir), str(base)]
    model = {"name": runs[0], "dtype": "float32"}
    prompts: dict[str, Any] = {"prompts": ["Say one."], "prompts_path": None, "reward": None, "html": None}
    compare.run(compose_job("compare", words, model=model), runs=runs, out=Path("c.json"), **prompts)
    columns = json.loads(Path("c.json").read_text())["columns"]
    assert [column["name"] for column in columns] == [f"{name} (vLLM 0.32.0)" for name in runs]
    Path("rows.jsonl").write_text(json.dumps({"instruction": "Say one.", "output": "one"}) + "\n")
    job = compose_job("evaluate", [*words, "data.path=rows.jsonl", "num_samples=2"], model=model)
    evaluate.run(job, runs=runs[:1], reward=None, reference=None, pairs=None, out=None)
    assert f"{runs[0]} (vLLM 0.32.0)" in capsys.readouterr().out
    tiny.raw = True
    with pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
        evaluate.run(job, runs=runs[:1], reward=None, reference=None, pairs=None, out=None)
