"""What an interpolation stands for is used by a command, and not written out by it."""

import importlib.util
import json
from pathlib import Path

import pytest

from alignkit.cli import app

TASK = {
    **{"task": "say", "dataset_path": "json", "test_split": "test", "doc_to_text": "{{instruction}}"},
    **{"doc_to_target": "{{output}}", "output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 2}},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="the extra eval")


@pytest.mark.parametrize("command", ["generate", "evaluate", pytest.param("tasks", marks=needs_harness), "merge"])
def test_no_file_of_a_command_holds_what_an_interpolation_stands_for(
    command: str, adapter_dir: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNKIT_TEST", "eager")
    Path("say.yaml").write_text(json.dumps(TASK | {"dataset_kwargs": {"data_files": {"test": str(rows)}}}))
    run, short = str(adapter_dir), "sampling.max_new_tokens=2"
    words = {
        "generate": ["generate", run, "--prompt", "Up?", short, "--out", "out/answers.jsonl"],
        "evaluate": ["evaluate", run, short, f"data.path={rows}", "--out", "out/figures.json"],
        "tasks": ["evaluate", run, "--tasks", "say.yaml", "--out", "out/tasks.json"],
        "merge": ["merge", run, "out/merged"],
    }[command]
    Path("out").mkdir()
    app([*words, "model.attn_implementation='${oc.env:ALIGNKIT_TEST}'"], standalone_mode=False)
    contents = [path.read_bytes() for path in Path("out").rglob("*") if path.is_file()]
    assert any(b"${oc.env:ALIGNKIT_TEST}" in content for content in contents)
    assert not any(b"eager" in content for content in contents)
