"""From rows to a merged model in the template of each family: served is what was trained, and it stops there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from alignkit.commands import generate, merge
from alignkit.commands.verify import examine
from alignkit.config import ModelConfig
from alignkit.data.rows.formats import to_prompt
from alignkit.jobs import MergeJob
from alignkit.launch import compose_job
from alignkit.models.tiny import random_model
from alignkit.stages.sft import run as sft
from alignkit.stages.sft.data import view
from families import CONVERSATIONS, family_tokenizer
from served import as_dict, served

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 4096}
WIDTH |= {"num_attention_heads": 2, "num_key_value_heads": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
ROUTED |= {"moe_intermediate_size": 16}

TEXT = ["one turn", "several turns"]
CALLS = ["a call", "two rounds of calls", "several users with tools"]
REASONED = ["reasoning in the last turn", "reasoning in every turn"]
REASONED_CALLS = ["reasoning with a call", "several users with tools and reasoning"]
ALL = ["system message", *TEXT, *CALLS, "two calls at once", *REASONED, *REASONED_CALLS]

# Template; model; kinds of rows that it has a form for; what a turn ends in.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "Qwen2.5": ("qwen2_5", {"model_type": "qwen2"}, [*TEXT, *CALLS, "two calls at once"], ["<|im_end|>"]),
    "Qwen3": ("qwen3", {"model_type": "qwen3", "head_dim": 16}, ALL, ["<|im_end|>"]),
    "Qwen3.5": ("qwen3_5_think", {"model_type": "qwen3", "head_dim": 16}, ALL, ["<|im_end|>"]),
    "Llama 3.2": ("llama3_2", {"model_type": "llama"}, ["system message", *TEXT, *CALLS], ["<|eot_id|>"]),
    "Gemma 3": ("gemma3", {"model_type": "gemma3_text", "head_dim": 16}, ["system message", *TEXT], ["<end_of_turn>"]),
    "Phi-3.5": ("phi3_5", {"model_type": "phi3"}, ["system message", *TEXT], ["<|end|>"]),
    "gpt-oss": (
        "gptoss",
        {"model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
        ["system message", *TEXT, *CALLS, *REASONED, *REASONED_CALLS],
        ["<|return|>", "<|call|>"],
    ),
    "DeepSeek-V3": (
        "deepseekv3",
        {"model_type": "deepseek_v3", **LATENT, **ROUTED, "num_key_value_heads": 2},
        ["system message", *TEXT],
        ["<｜end▁of▁sentence｜>"],
    ),
    "GLM-4": ("glm4moe", {"model_type": "glm4_moe", **ROUTED}, ALL, ["<|user|>", "<|observation|>"]),
    "Nemotron 3": ("nemotron_3_nano", {"model_type": "llama"}, ALL, ["<|im_end|>"]),
}
QUICK = ["Qwen3", "gpt-oss"]


def row_of(kind: str) -> dict[str, Any]:
    conversation = CONVERSATIONS[kind]
    tools = {"tools": list(conversation.tools)} if conversation.tools else {}
    return {"messages": [as_dict(message) for message in conversation.messages], **tools}


def prompts_in(ids: list[int], labels: list[int]) -> list[int]:
    """What stands before the last stretch with loss."""
    last = max(at for at, label in enumerate(labels) if label != -100)
    start = max(at for at in range(last) if labels[at] == -100)
    return ids[: start + 1]


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_what_is_trained_is_served(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, config, kinds, ends = FAMILIES[family]
    tokenizer = family_tokenizer(name)
    random_model({**WIDTH, **config}, tokenizer=tokenizer, seed=0).save_pretrained("base")
    tokenizer.save_pretrained("base")
    rows = write_rows([row_of(kind) for kind in kinds])
    words = ["model.name=base", "template=native", f"data.path={rows}", "lora=all_linear", "lora.lora_dropout=0"]
    words += ["samples=0", "train.max_steps=2", "train.per_device_train_batch_size=2", "train.report_to=none"]
    job = compose_job("sft", [*words, "data.max_length=4096", "data.max_dropped=0"])
    sft.run(job, Path("run"))
    merge.run(MergeJob(ModelConfig("run")), out=Path("merged"))
    asked = [to_prompt(row_of(kind), "messages", {}) for kind in kinds]
    for folder in ("run", "merged"):
        verdicts = {found.what: (found.verdict, found.detail) for found in examine(Path(folder), ModelConfig(folder))}
        assert [(what, *found) for what, found in verdicts.items() if found[0] == "FAIL"] == []
        assert {what for what, found in verdicts.items() if found[0] == "ok"} >= {"template", "prompts", "stop"}
        stops = GenerationConfig.from_pretrained(folder).eos_token_id
        wanted = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(ends)}  # the base's own stops, too
        assert {*(stops if isinstance(stops, list) else [stops])} == wanted
        server = AutoTokenizer.from_pretrained(folder)
        short = ["sampling.max_new_tokens=2", f"model.name={folder}"]
        generate.run(compose_job("generate", short), prompts=[], prompts_path=rows, out=Path(f"{folder}.jsonl"))
        answers = [json.loads(line) for line in Path(f"{folder}.jsonl").read_text().splitlines()]
        fed = [served(server, row, len(row.messages), add_generation_prompt=True) for row in asked]
        assert [answer["prompt"] for answer in answers] == [server.decode(ids) for ids in fed]
        assert [answer["num_prompt_tokens"] for answer in answers] == [len(ids) for ids in fed]
        trained = {row.source: prompts_in(row.input_ids, row.labels) for row in view(job).rows()}  # the last part's
        assert list(trained.values()) == fed
