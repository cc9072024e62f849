"""Everywhere an adapter is merged, the sums are made in float32 and rounded once, though its base is in bfloat16."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from alignkit.choices import Dtype
from alignkit.commands import merge, verify
from alignkit.config import ModelConfig, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.jobs import MergeJob
from alignkit.launch import compose_job
from alignkit.models.tiny import byte_tokenizer
from alignkit.stages.dpo import run as dpo
from alignkit.stages.ppo import run as ppo
from alignkit.stages.reward import run as reward

PACKAGE = Path(merge.__file__).parents[1]
LAYER = "layers.0.self_attn.q_proj.weight"
SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PAIRS = [{"prompt": f"Say {n}.", "chosen": f"{n}", "rejected": "no"} for n in range(8)]
QUIET = [
    "template=instruction",
    "train.report_to=none",
    "data.path=pairs.jsonl",
    "data.eval_fraction=0",
    "train.bf16=false",
]
PPO = ["ppo.num_updates=1", "ppo.num_prompts=4", "ppo.num_mini_batches=1", "reward=[{function: 'rewards.py:length'}]"]


class Held(Exception):
    """Ends a stage where it begins to train, with what it trains."""


@pytest.fixture
def merged(stored: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Make `base` and `adapter` on it; the weight that they come to, in float64."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    Path("rewards.py").write_text("def length(prompts, completions):\n    return [len(c) for c in completions]\n")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = load_template(TemplateConfig(name="instruction"), tokenizer).jinja
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SIZES)).to(stored)
    for folder in ("base", "adapter"):
        tokenizer.save_pretrained(folder)
    model.save_pretrained("base")
    model.name_or_path = str(tmp_path / "base")
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained("adapter")
    a_RH, b_HR = (weight.double() for _, weight in sorted(load_file("adapter/adapter_model.safetensors").items()))
    base = load_file("base/model.safetensors")[f"model.{LAYER}"]
    assert base.dtype == stored
    merged: Tensor = base.double() + b_HR @ a_RH
    return merged


def written(folder: str) -> Tensor:
    return load_file(f"{folder}/model.safetensors")[f"model.{LAYER}"]


def by_merge(dtype: Dtype) -> Tensor:
    merge.run(MergeJob(ModelConfig("adapter", dtype=dtype)), out=Path("out"))
    return written("out")


def held_by(stage: Any, name: str, *words: str) -> Any:
    """The trainer of a stage, just before its first step."""

    def hold(trainer: Any, **given: Any) -> None:
        raise Held(trainer)

    job = compose_job(name, [*QUIET, *([] if name == "reward" else ["samples=0"]), *words])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "train", hold)
        patch.setattr("alignkit.models.load.default_dtype", lambda: torch.bfloat16)
        with pytest.raises(Held) as caught:
            stage.run(job, Path("out"))
    return caught.value.args[0]


def in_reward(*words: str) -> Tensor:
    return weight_in(held_by(reward, "reward", "model.name=adapter", *words).model)


def in_dpo(*words: str) -> Tensor:
    return weight_in(held_by(dpo, "dpo", "model.name=base", "reference.name=adapter", *words).ref_model)


def in_ppo(*words: str) -> Tensor:
    trainer = held_by(ppo, "ppo", "model.name=base", "reference.name=adapter", *PPO, *words)
    return weight_in(trainer.policy.reference.model)


def in_values(*words: str) -> Tensor:
    trainer = held_by(ppo, "ppo", "model.name=adapter", "value.model=own", *PPO, *words)
    return weight_in(trainer.policy.value.backbone)


def weight_in(model: torch.nn.Module) -> Tensor:
    """The merged weight, with an adapter of its own beside it or not."""
    (found,) = [weight for name, weight in model.named_parameters() if name.replace(".base_layer", "").endswith(LAYER)]
    return found.detach()


HALF = "model.dtype=bfloat16"
PATHS: dict[str, tuple[Callable[[], Tensor], torch.dtype]] = {
    "merge in bfloat16": (lambda: by_merge(Dtype.bfloat16), torch.bfloat16),
    "merge in float32": (lambda: by_merge(Dtype.float32), torch.float32),
    "a reward run": (in_reward, torch.float32),
    "a reward run with an adapter": (lambda: in_reward("lora=default"), torch.bfloat16),
    "the reference of DPO": (in_dpo, torch.float32),
    "the reference of PPO": (in_ppo, torch.float32),
    "the reference of PPO in bfloat16": (lambda: in_ppo(HALF), torch.bfloat16),
    "values of their own": (in_values, torch.float32),
}


# Where the result is in bfloat16 the base is not: two roundings would show.
STORED = {torch.float32: torch.bfloat16, torch.bfloat16: torch.float32}


@pytest.mark.parametrize(("path", "stored"), [(path, STORED[dtype]) for path, (_, dtype) in PATHS.items()], ids=PATHS)
def test_the_sums_are_of_float32_and_rounded_once(path: str, merged: Tensor) -> None:
    load, dtype = PATHS[path]
    weight = load()
    assert weight.dtype == dtype
    if dtype == torch.float32:
        assert float((weight - merged).abs().max()) < 1e-6  # 9e-4 if it were merged in bfloat16
    else:  # a sum half-way between two numbers of bfloat16 may be rounded either way
        assert float((weight != merged.bfloat16()).float().mean()) < 0.01


@pytest.mark.parametrize("stored", [torch.bfloat16])
def test_verify_merges_in_float32(merged: Tensor) -> None:
    finding = verify._adapter(ModelConfig("adapter"))
    difference = re.search(r"differs by (\S+) nats", finding.detail)
    assert difference is not None
    assert finding.verdict == "ok"
    assert float(difference[1]) < 1e-5


def test_an_adapter_is_merged_nowhere_else() -> None:
    files = {str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}
    merging = {file for file, text in files.items() if "merge_and_unload" in text or "merge_adapter()" in text}
    assert merging == {"evaluate/adapter_merge.py", "models/load.py"}
