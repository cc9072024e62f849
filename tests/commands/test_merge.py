"""An adapter merged is the adapter, to rounding; and nothing is written where it is not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.choices import Dtype
from alignkit.commands.merge import run
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError
from alignkit.jobs import MergeJob
from alignkit.models.load import load_model, load_tokenizer
from alignkit.runs.manifest import parent_folders, read_manifest
from alignkit.runs.result import seal_result


def job(folder: Path, dtype: Dtype = Dtype.auto, max_difference: float | None = None) -> MergeJob:
    return MergeJob(ModelConfig(str(folder), dtype=dtype), max_difference=max_difference)


def refusal(*args: object, out: Path) -> list[str]:
    with pytest.raises(AlignkitError) as caught:
        run(job(*args), out=out)  # type: ignore[arg-type]  # the arguments of `job`, passed on
    assert caught.value.exit_status == 2
    return list(caught.value.problems)


def test_the_merged_folder_says_what_the_adapter_says(adapter_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "merged"
    run(job(adapter_dir), out=out)
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert "adapter_config.json" not in names
    config = ModelConfig(str(adapter_dir), dtype=Dtype.float32)
    tokenizer = load_tokenizer(config)
    adapted = load_model(config, tokenizer=tokenizer, seed=0, trainable=False)
    base = load_model(replace(config, name=str(adapter_dir / "base")), tokenizer=tokenizer, seed=0)
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.float32
    ids = torch.tensor([tokenizer("### Instruction:\nSay hello.\n\n### Response:\n")["input_ids"]])
    logprobs = [model(ids).logits.log_softmax(-1) for model in (adapted, merged, base)]
    assert (logprobs[0] - logprobs[1]).abs().max() < 1e-4
    assert (logprobs[0] - logprobs[2]).abs().max() > 0.1
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["result"]["largest_difference"] < 1e-6  # 4e-6 if it were computed in float32
    assert parent_folders(out, manifest) == [adapter_dir]
    assert (
        AutoTokenizer.from_pretrained(out).get_chat_template()
        == AutoTokenizer.from_pretrained(adapter_dir).get_chat_template()
    )
    stops = [
        json.loads((folder / "generation_config.json").read_text())["eos_token_id"] for folder in (adapter_dir, out)
    ]
    assert stops == [[258], [258]]


def test_the_dtype_can_be_chosen(adapter_dir: Path, tmp_path: Path) -> None:
    run(job(adapter_dir, Dtype.bfloat16), out=tmp_path / "half")
    assert {weight.dtype for weight in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_difference_past_the_bound_is_refused_and_nothing_stays(adapter_dir: Path, tmp_path: Path) -> None:
    (line,) = refusal(adapter_dir, Dtype.bfloat16, 1e-6, out=tmp_path / "out")
    assert line.startswith("max_difference: the merged model differs from the adapter by ")
    assert line.endswith("raise the bound if that is good enough, or take model.dtype=float32")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_together(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    assert refusal(run_dir, out=tmp_path / "taken") == [
        f"model.name: {run_dir} is no adapter: there is nothing to merge",
        f"{tmp_path / 'taken'} exists already: name another folder or remove it",
    ]
    (tmp_path / "empty").mkdir()
    (line,) = refusal(tmp_path / "empty", out=tmp_path / "out")
    assert line.startswith(f"model.name: {tmp_path / 'empty'} holds no model")


def test_weights_that_are_no_numbers_are_refused(adapter_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapter_dir, broken)
    weights = load_file(broken / "adapter_model.safetensors")
    save_file({name: weight * torch.nan for name, weight in weights.items()}, broken / "adapter_model.safetensors")
    seal_result(broken)
    (line,) = refusal(broken, out=tmp_path / "out")
    assert "differs from the adapter by nan nats" in line
    assert not (tmp_path / "out").exists()
