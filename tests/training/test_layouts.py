"""Rows that share a line score as they do alone, on real attention, or the layout is not taken."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignkit.data.batches.batching import Collator
from alignkit.training.layouts import packs_exactly

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
    assert packs_exactly(model, vocab_size=50)


def test_a_model_that_looks_across_rows_is_found() -> None:
    model = tiny("llama", "eager")
    forward = model.forward

    def careless(input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **rest: object) -> object:
        return forward(input_ids=input_ids, **rest)  # positions run on and nothing keeps the rows apart

    model.forward = careless
    assert not packs_exactly(model, vocab_size=50)
