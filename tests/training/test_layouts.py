"""Rows that share a line score as they do alone, on real attention, or the layout is not taken."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignkit.data.batches.batching import Collator
from alignkit.training.layouts import packs_exactly, windows

CONFIGS = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 50},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": 50,
    },
}


def tiny(model_type: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("model_type", CONFIGS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("one_line", [False, True])
def test_packed_rows_score_as_they_do_alone(model_type: str, attention: str, one_line: bool) -> None:
    model = tiny(model_type, attention).eval()
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": ids, "labels": ids, "row_index": i}
        for i, n in enumerate((13, 4, 9, 2, 7))
        for ids in [torch.randint(1, 50, (n,), generator=generator).tolist()]
    ]
    batch = Collator(pad_id=0, packed=True, one_line=one_line)(rows)
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        alone = {i: model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for i, row in enumerate(rows)}
    starts = (batch["position_ids"] == 0).nonzero().tolist()
    real = [(line, at) for line, at in starts if batch["input_ids"][line, at] != 0]
    for (line, at), index in zip(real, batch["row_index"].tolist(), strict=True):
        torch.testing.assert_close(packed[line, at : at + len(alone[index])], alone[index], atol=2e-5, rtol=0)
    assert packs_exactly(model, longest_row=13, longest_line=35)


def test_a_model_that_looks_across_rows_is_found() -> None:
    model = tiny("llama", "eager")
    forward = model.forward

    def careless(input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **rest: object) -> object:
        return forward(input_ids=input_ids, **rest)  # positions run on and nothing keeps the rows apart

    model.forward = careless
    assert not packs_exactly(model, longest_row=13, longest_line=13)


WINDOWED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neo": ("window_size", {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}),
    "mistral": ("sliding_window", {}),
    "gemma3_text": ("sliding_window", {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "llama4_text": (
        "attention_chunk_size",
        {
            **{"head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 32, "no_rope_layers": [1, 1]},
            "layer_types": ["chunked_attention", "full_attention"],
        },
    ),
    "doge": ("keep_window_size", {"num_experts": 4}),  # which packs its rows wrongly, past the window alone
}


def windowed(model_type: str, size: int) -> PreTrainedModel:
    name, more = WINDOWED[model_type]
    torch.manual_seed(0)
    sizes = CONFIGS["llama"] if model_type != "gpt_neo" else {"hidden_size": 32, "vocab_size": 50}
    config = AutoConfig.for_model(
        model_type,
        **{**sizes, **more, name: size, "max_position_embeddings": 128, "initializer_range": 0.2},
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("model_type", WINDOWED)
@pytest.mark.parametrize("lengths", [(41, 30, 9), (12, 7)])
def test_the_proof_of_packing_tells_the_truth_past_a_window_by_any_name(model_type: str, lengths: list[int]) -> None:
    model = windowed(model_type, 20)
    assert 20 in windows(model.config)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 50, (length,), generator=generator).tolist() for length in lengths]
    batch = Collator(pad_id=0, packed=True, one_line=True)(
        [{"input_ids": ids, "labels": ids, "row_index": i} for i, ids in enumerate(rows)]
    )
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in rows])
    is_exact = bool((packed - alone).abs().max() < 1e-4)
    assert is_exact == (model_type != "doge" or sum(lengths) <= 20)
    assert packs_exactly(model, longest_row=max(lengths), longest_line=sum(lengths)) == is_exact


def test_longrope_turns_the_positions_of_all_that_share_a_line() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope |= {"original_max_position_embeddings": 20, "factor": 4.0}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **CONFIGS["llama"], initializer_range=0.2, rope_parameters=rope)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert packs_exactly(model, longest_row=20, longest_line=40)
    assert not packs_exactly(model, longest_row=21, longest_line=40)
