"""Two responses behind one prompt score as they do alone, on real attention, or the layout is not taken."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignkit.data.batches.pair_batching import PairCollator, by_side
from alignkit.training.layouts import may_share_prompts, shares_prompts_exactly
from alignkit.training.lm_head import lm_head
from alignkit.training.pairs import model_inputs

SIZES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # ALiBi: distances come from the mask
}
PAIRS = [
    {"prompt_ids": [5, 9, 11], "chosen_ids": [12, 13, 14], "rejected_ids": [15], "row_index": 0},
    {"prompt_ids": [7], "chosen_ids": [3], "rejected_ids": [8, 9, 10, 11, 12], "row_index": 1},
]


def model_of(kind: str, attention: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=64, **SIZES[kind], **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_both_layouts_give_the_log_probabilities_of_each_response_alone(kind: str, attention: str) -> None:
    model = model_of(kind, attention)
    assert may_share_prompts(model, longest_line=64)
    assert shares_prompts_exactly(model, lm_head(model), longest_line=64)
    alone = []
    for side in ("chosen_ids", "rejected_ids"):
        for pair in PAIRS:
            prompt, response = pair["prompt_ids"], pair[side]
            logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            alone.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())
    for shared in (False, True):
        batch = PairCollator(0, shared_prompt=shared)(PAIRS)
        logits = model(**model_inputs(batch, attention=attention, shared_prompt=shared)).logits
        labels = batch["shift_labels"]
        every = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
        sums = by_side(every, batch["parts"], len(PAIRS)).sum(1)
        assert torch.allclose(sums, torch.stack(alone), atol=1e-5)


def test_an_architecture_that_makes_more_of_its_mask_is_found_out() -> None:
    model = model_of("bloom", "eager")
    assert not shares_prompts_exactly(model, lm_head(model), longest_line=20)


def test_a_mask_of_ours_never_takes_the_place_of_a_sliding_window() -> None:
    config = AutoConfig.for_model("mistral", vocab_size=64, sliding_window=4, **SIZES["llama"], num_key_value_heads=4)
    with torch.device("meta"):
        assert not may_share_prompts(AutoModelForCausalLM.from_config(config), longest_line=20)
        config.sliding_window = None
        assert may_share_prompts(AutoModelForCausalLM.from_config(config), longest_line=20)


def test_a_model_that_looks_backwards_from_the_end_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama", "sdpa")
    monkeypatch.setattr("alignkit.training.pairs.visible", lambda parts: torch.ones(len(parts), 1, 1, 1).bool())
    assert not shares_prompts_exactly(model, lm_head(model), longest_line=20)


@pytest.mark.parametrize("longest_line", [24, 25])
def test_no_line_reaches_past_a_window_or_the_columns_of_a_mask(longest_line: int) -> None:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
    for window, positions in ((24, 64), (64, 24)):  # its mask has as many columns as there are positions
        config = AutoConfig.for_model(
            "gpt_neo", vocab_size=64, window_size=window, max_position_embeddings=positions, **sizes
        )
        model = AutoModelForCausalLM.from_config(config).eval()
        may = may_share_prompts(model, longest_line=longest_line)
        assert may == (longest_line <= window)
        may = may and shares_prompts_exactly(model, lm_head(model), longest_line=longest_line)
        assert may == (longest_line == 24)
