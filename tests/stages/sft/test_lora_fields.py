"""Every field of `peft.LoraConfig`: it trains, and its run loads as it was trained, or it is refused in a line."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from alignkit.errors import AlignkitError
from alignkit.launch import compose_job
from alignkit.models.lora import build_lora
from alignkit.models.tiny import byte_tokenizer, random_model
from alignkit.stages.dpo import run as dpo
from alignkit.stages.sft import run as sft
from alignkit.training.lm_head import complete_head
from alignkit.upstream import LORA_OWNED

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 128}  # tied, of Conv1D
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
NAMED: dict[str, Any] = {}  # LLAMA, in a folder of its own
IDS = torch.arange(40, 60)[None]

TRAINS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "r": [(GPT2, {"r": 3})],
    "target_modules": [(GPT2, {"target_modules": ["c_attn"]})],
    "exclude_modules": [(GPT2, {"target_modules": "all-linear", "exclude_modules": ["c_proj"]})],
    "lora_alpha": [(GPT2, {"lora_alpha": 4})],
    "lora_dropout": [(GPT2, {"lora_dropout": 0.1})],
    "fan_in_fan_out": [(GPT2, {"fan_in_fan_out": True})],
    "bias": [(GPT2, {"bias": "all"}), (GPT2, {"bias": "lora_only"})],
    "use_rslora": [(GPT2, {"use_rslora": True})],
    "modules_to_save": [(GPT2, {"modules_to_save": ["lm_head"]}), (GPT2, {"modules_to_save": ["wte"]})],
    "init_lora_weights": [
        *((GPT2, {"init_lora_weights": start}) for start in (False, "gaussian", "orthogonal", "mica")),
        *((NAMED, {"init_lora_weights": start}) for start in ("pissa", "olora")),
    ],
    "layers_to_transform": [(GPT2, {"layers_to_transform": [0]})],
    "layers_pattern": [(GPT2, {"layers_to_transform": [0], "layers_pattern": "h"})],
    "rank_pattern": [(GPT2, {"rank_pattern": {"c_attn": 3}})],
    "alpha_pattern": [(GPT2, {"alpha_pattern": {"c_attn": 3}})],
    "trainable_token_indices": [
        (GPT2, {"trainable_token_indices": [40, 41]}),
        (GPT2, {"trainable_token_indices": {"wte": [40, 41]}}),
        (LLAMA, {"trainable_token_indices": [40, 41]}),
    ],
    "use_dora": [(GPT2, {"use_dora": True})],
    "velora_config": [(LLAMA, {"velora_config": {"num_groups": 4}})],
    "lora_bias": [(GPT2, {"lora_bias": True})],
    "target_parameters": [(LLAMA, {"target_parameters": ["mlp.gate_proj.weight"]})],
    "use_bdlora": [
        (
            LLAMA,
            {"use_bdlora": {"target_modules_bd_a": ["q_proj", "k_proj", "v_proj"], "target_modules_bd_b": ["o_proj"]}},
        )
    ],
    "ensure_weight_tying": [
        (GPT2, {"ensure_weight_tying": True, "modules_to_save": ["wte"]}),
        (GPT2, {"ensure_weight_tying": True, "trainable_token_indices": [40]}),
    ],
}
REFUSED: dict[str, list[Any]] = {
    "target_modules": [["q_proj"]],
    "exclude_modules": [["c_attn", "c_proj"]],
    "bias": ["some"],
    "modules_to_save": [["nope"]],
    "init_lora_weights": ["eva", "corda", "loftq", "lora_ga", "wobbly", "olora", "pissa", "pissa_niter_4"],
    "layers_to_transform": [[7]],
    "layers_pattern": ["h"],
    "rank_pattern": [{"c_attn": "x"}],
    "trainable_token_indices": [[99999], [-1], {"nope": [1]}],
    "target_parameters": [["nope.weight"], ["mlp.c_fc.weight"]],
    "use_bdlora": [{"target_modules_bd_a": ["c_attn"], "target_modules_bd_b": ["c_proj"]}],
    **{name: [{}] for name in ("auto_mapping", "megatron_config", "loftq_config", "runtime_config", "eva_config")},
    **{name: [{}] for name in ("corda_config", "lora_ga_config", "monteclora_config", "kasa_config")},
    **{name: ["x"] for name in ("task_type", "peft_type", "peft_version", "base_model_name_or_path", "revision")},
    "inference_mode": [True],
    "megatron_core": ["megatron.core"],
    "alora_invocation_tokens": [[40]],
    "use_qalora": [True],
    "qalora_group_size": [8],
    "layer_replication": [[[0, 1], [0, 1]]],
    "arrow_config": [{"top_k": 1}],
}


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]
) -> Callable[..., torch.Tensor]:
    """Train two steps with a section `lora`, and return the logits of the model as it was when it was saved."""
    monkeypatch.chdir(tmp_path)
    write_rows([{"instruction": f"Say {i}.", "output": f"{i}, I (say)"} for i in range(8)], "rows.jsonl")
    write_rows([{"prompt": f"Say {i}.", "chosen": f"{i}, I (say)", "rejected": "()"} for i in range(8)], "pairs.jsonl")
    kept: list[torch.Tensor] = []

    def keep(stage: Any) -> None:
        save = stage.save

        def kept_before(trainer: Any, *args: Any, **rest: Any) -> None:
            kept.append(logits(trainer.model))
            save(trainer, *args, **rest)

        monkeypatch.setattr(stage, "save", kept_before)

    keep(sft)
    keep(dpo)

    def train(config: dict[str, Any], lora: dict[str, Any], *, stage: str = "sft") -> torch.Tensor:
        rows = {"sft": "rows.jsonl", "dpo": "pairs.jsonl"}[stage]
        words = ["model.name=base"] if config is NAMED else ["model=tiny_gpt2"]
        words += ["template=instruction", f"data.path={rows}", "samples=0", "train.max_steps=2", "train.report_to=none"]
        job: Any = compose_job(
            stage, [*words, "train.learning_rate=1e-2", "train.logging_steps=1", "model.dtype=float32"]
        )
        if config is NAMED:
            random_model(LLAMA, tokenizer=byte_tokenizer(), seed=0).save_pretrained("base")
            byte_tokenizer().save_pretrained("base")
        job.model.config, job.lora = config, {"r": 2, **lora}
        {"sft": sft, "dpo": dpo}[stage].run(job, Path("out"))
        return kept[-1]

    return train


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    model.eval()
    return model(input_ids=IDS).logits


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, several in table.items()
        for number, case in enumerate(several)
    ]


def test_every_field_is_in_a_table() -> None:
    assert {field.name for field in dataclasses.fields(LoraConfig)} == TRAINS.keys() | REFUSED.keys()
    assert LORA_OWNED.keys() <= REFUSED.keys() - TRAINS.keys()


@pytest.mark.parametrize(("name", "case"), cases(TRAINS))
def test_a_field_that_trains_is_loaded_as_it_was_trained(run, name: str, case: Any) -> None:
    trained = run(*case)
    loaded = logits(AutoPeftModelForCausalLM.from_pretrained("out"))
    torch.testing.assert_close(loaded, trained, rtol=1e-4, atol=1e-5)
    metrics = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [line["grad_norm"] > 0 for line in metrics if "grad_norm" in line] == [True, True]


@pytest.mark.parametrize("lora", [{"trainable_token_indices": [40, 41]}, {"target_modules": ["wpe"]}])
def test_dpo_trains_embeddings_and_trains_them_further(run, lora: dict[str, Any]) -> None:
    trained = run(GPT2, lora, stage="dpo")
    loaded = AutoPeftModelForCausalLM.from_pretrained("out")
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-4, atol=1e-5)
    words = ["model.name=out", "data.path=pairs.jsonl", "samples=0", "train.max_steps=1", "train.report_to=none"]
    dpo.run(compose_job("dpo", [*words, "train.logging_steps=1", "model.dtype=float32"]), Path("further"))
    (first,) = [json.loads(line) for line in Path("further/metrics.jsonl").read_text().splitlines()][:1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)  # the reference has what was trained, too


@pytest.mark.parametrize("setting", [{"init_lora_weights": "pissa"}, {"init_lora_weights": False}, {"bias": "all"}])
def test_dpo_refuses_an_adapter_without_which_the_base_is_no_reference(run, setting: dict[str, Any]) -> None:
    with pytest.raises(AlignkitError, match=r"^lora\..*: the base without its adapter is the reference"):
        run(NAMED, setting, stage="dpo")


def test_upstreams_head_has_the_trained_tokens_and_their_gradient() -> None:
    model: Any = random_model(GPT2, tokenizer=byte_tokenizer(), seed=0)
    add_fused_lm_head(model)
    adapted = get_peft_model(model, build_lora({"trainable_token_indices": [40, 41]}, model))
    complete_head(adapted)
    (delta,) = {p for name, p in adapted.named_parameters() if "trainable_tokens_delta" in name}
    with torch.no_grad():
        delta.add_(torch.linspace(-1, 1, delta.numel()).view_as(delta))
    fused = adapted(input_ids=IDS, labels=IDS, fused_lm_head=True).log_probs
    plain = adapted(input_ids=IDS).logits[:, :-1].log_softmax(-1).gather(2, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss.sum(), delta)[0] for loss in (fused, plain)))


@pytest.mark.parametrize(("name", "value"), cases(REFUSED))
def test_a_field_that_cannot_train_is_refused_before_the_model_is_loaded(
    run, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(sft, "load_model", unreachable)
    with pytest.raises(AlignkitError, match=r"^lora") as caught:
        run(GPT2, {name: value})
    assert all("\n" not in line for line in caught.value.problems)
