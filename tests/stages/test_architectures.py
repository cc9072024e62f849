"""Every stage on every kind of architecture, tiny and random: two steps with evaluation at default settings."""

import json
import math
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from alignkit.errors import ConfigError, ModelError
from alignkit.launch import compose_job
from alignkit.models.load import check_model

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.1}
HEADS = {**WIDTH, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512}
GROUPED = {**HEADS, "num_key_value_heads": 1}
EXPERTS = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "window_size": 8, "max_position_embeddings": 512}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # dense
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 512},
    "gpt_neox": HEADS,
    "opt": {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"ffn_dim": 32, "word_embed_proj_dim": 32, "max_position_embeddings": 512},
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "phi": HEADS,
    "qwen3": GROUPED,
    # tied
    "llama": {**GROUPED, "tie_word_embeddings": True},
    # windowed
    "mistral": {**GROUPED, "sliding_window": 8},
    "gpt_neo": {**NEO, "attention_types": [[["global", "local"], 1]]},
    "gemma3_text": {**GROUPED, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    # with logits that are capped or scaled
    "gemma2": {**GROUPED, "sliding_window": 8},
    "granite": {**GROUPED, "logits_scaling": 8.0},
    "cohere": GROUPED,
    # mixtures of experts
    "mixtral": EXPERTS,
    "qwen3_moe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "olmoe": {**EXPERTS, "num_key_value_heads": 2},
    "gpt_oss": {**EXPERTS, "sliding_window": 8},
    "granitemoe": EXPERTS,
    "jetmoe": {**WIDTH, "intermediate_size": 32, "kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {**HEADS, **LATENT, **ROUTED, "moe_intermediate_size": 16},
    # hybrids
    "jamba": {
        **GROUPED,
        **{"num_experts": 2, "num_experts_per_tok": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
        **{"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
        "use_mamba_kernels": False,
    },
    "bamba": {**GROUPED, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**GROUPED, **MAMBA, "mamba_d_head": 8, "mamba_d_ssm": 32},
    "granitemoehybrid": {**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "zamba2": {**HEADS, "layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 4},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        **GROUPED,
        **LINEAR,
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **{"shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]},
    },
    "minimax": {**EXPERTS, "layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "block_size": 8},
    "recurrent_gemma": {
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"lru_width": 32, "intermediate_size": 32, "attention_window_size": 8},
    },
    # state spaces
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        **{"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        **{"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    },
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32},
}
NUMBERS = ["one", "two", "three", "four"]
ROWS = [
    {"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}" + ", and so on" * (i % 4)}
    for i, (a, b) in enumerate((a, b) for a in NUMBERS for b in NUMBERS)
]
PAIRS = [
    {"prompt": row["instruction"], "chosen": row["output"], "rejected": "no" + ", no" * (i % 3)}
    for i, row in enumerate(ROWS)
]
REWARD = "def length(prompts, completions, **columns):\n    return [len(text) / 10 for text in completions]\n"

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]) -> Run:
    """Run a stage, in a folder of its own, for two steps; its metrics."""
    monkeypatch.chdir(tmp_path)
    write_rows(ROWS, "rows.jsonl")
    write_rows(PAIRS, "pairs.jsonl")
    Path("rewards.py").write_text(REWARD)

    def train(stage: str, architecture: str | None = None, *more: str, **config: Any) -> list[dict[str, Any]]:
        words = ["model.dtype=float32", "train.bf16=false", "train.report_to=none", "train.learning_rate=1e-3"]
        words += ["train.per_device_train_batch_size=4", "data.eval_fraction=0.25", "train.logging_steps=1"]
        words += [f"data.path={'pairs' if stage in ('reward', 'dpo') else 'rows'}.jsonl"]
        words += ["template=instruction", "model=tiny_gpt2"] if architecture else ["model.name=sft"]
        words += [] if stage == "reward" else ["samples=3", "sampling.max_new_tokens=5"]
        steps = ["ppo.num_updates=2", "ppo.num_prompts=4", "ppo.num_mini_batches=1"]
        steps += ["reward=[{function: 'rewards.py:length'}]"]
        job = compose_job(stage, [*words, *(steps if stage == "ppo" else ["train.max_steps=2"]), *more])
        if architecture:
            job.model.config = {"model_type": architecture, **config}
            check_model(job.model)
        folder = Path(f"fresh_{stage}" if architecture and stage != "sft" else stage)
        import_module(f"alignkit.stages.{stage}.run").run(job, folder)
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return train


def losses(metrics: list[dict[str, Any]], key: str) -> list[float]:
    return [entry[key] for entry in metrics if key in entry]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_stage_trains_and_evaluates(run: Run, architecture: str) -> None:
    config = ARCHITECTURES[architecture]
    assert losses(run("sft", architecture, **config), "eval_loss")[-1] < math.log(261) + 1
    for words in ((), (architecture,)):
        metrics = run("dpo", *words, **(config if words else {}))
        assert losses(metrics, "eval_loss")[0] == pytest.approx(math.log(2), abs=1e-5)
        assert all(map(math.isfinite, losses(metrics, "eval_loss")))
    assert losses(run("ppo"), "objective/kl")[0] == pytest.approx(0, abs=1e-4)
    if CONFIG_MAPPING[architecture] in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        assert all(map(math.isfinite, losses(run("reward"), "eval_loss")))
    else:
        with pytest.raises(ConfigError, match="transformers has no sequence classification for a"):
            run("reward")


def test_the_second_response_sees_its_prompt_past_a_window(run: Run) -> None:
    config = ARCHITECTURES["gpt_neo"] | {"window_size": 24, "initializer_range": 0.2}
    found = []
    for batching in ("auto", "padded"):
        metrics = run("dpo", "gpt_neo", f"data.batching={batching}", **config)
        found.append([losses(metrics, f"eval_logps/{side}")[0] for side in ("chosen", "rejected")])
        shutil.rmtree("fresh_dpo")
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", "granitemoe"])  # the one says num_experts, the other does not
def test_the_router_of_a_mixture_is_trained_by_dpo_and_no_part_of_what_is_held_out(run: Run, architecture: str) -> None:
    metrics = run("dpo", architecture, **EXPERTS, router_aux_loss_coef=0.5)
    first = next(entry for entry in metrics if "loss" in entry)
    assert first["aux_loss"] > 1
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * first["aux_loss"], abs=1e-5)
    held_out = next(entry for entry in metrics if "eval_loss" in entry)
    assert held_out["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert held_out["eval_aux_loss"] > 1


def test_a_trained_mixture_answers_several_prompts_at_once(run: Run) -> None:
    run("sft", "mixtral", **EXPERTS)  # which shows the answers to three
    assert not json.loads(Path("sft/config.json").read_text())["output_router_logits"]
    config = json.loads(Path("sft/config.json").read_text()) | {"output_router_logits": True}  # as runs before had it
    Path("sft/config.json").write_text(json.dumps(config))
    assert losses(run("ppo"), "objective/kl")[0] == pytest.approx(0, abs=1e-4)


def test_a_router_s_loss_that_cannot_be_had_is_refused(run: Run) -> None:
    def train(*words: str) -> None:
        basis = ["model=tiny_gpt2", "template=instruction", "data.path=pairs.jsonl", "samples=0", *words]
        job = compose_job("dpo", basis)
        if "data.batching=packed" in words:
            job.model.config = {"model_type": "mixtral", **EXPERTS}
        import_module("alignkit.stages.dpo.run").run(job, Path("dpo"))

    with pytest.raises(ModelError, match=r"^train.router_aux_loss_coef: a gpt2 has no router of experts; leave it out"):
        train("train.router_aux_loss_coef=0.1")
    with pytest.raises(ConfigError, match=r"^data.batching=packed: the router's loss of this mixture would count"):
        train("data.batching=packed")
