"""A row of a padded batch is encoded as it is alone, whatever LongRoPE makes of the rows beside it."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignkit.choices import Init
from alignkit.config import ModelConfig
from alignkit.data.batches.batching import Collator
from alignkit.data.batches.pair_batching import PairCollator
from alignkit.evaluate.likelihood import Row, token_logprobs
from alignkit.long_rope import encode_each_row_alone, turns_at
from alignkit.models.load import load_model
from alignkit.models.reward import as_reward_model, scores_of
from alignkit.models.tiny import byte_tokenizer
from alignkit.ppo.scoring import CompletionScorer, pad_sequences
from alignkit.ppo.value import OwnValue
from alignkit.training.layouts import may_share_prompts, packs_exactly
from alignkit.training.pairs import model_inputs

TURN = 12
ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "factor": 4.0}
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GENERATOR = torch.Generator().manual_seed(0)
ROWS = [torch.randint(3, 50, (length,), generator=GENERATOR).tolist() for length in (5, 12, 13, 30)]


def load(kind: str = "phi3", **rope: Any) -> Any:
    parameters = rope or ROPE | {"original_max_position_embeddings": TURN}
    config: dict[str, Any] = {"model_type": kind, **SIZES, "initializer_range": 0.3, "rope_parameters": parameters}
    config |= {"max_position_embeddings": 64}
    config |= {"original_max_position_embeddings": TURN} if kind == "phi3" else {}
    section = ModelConfig("tiny", init=Init.random, config=config)
    return load_model(section, tokenizer=byte_tokenizer(), seed=1)


def logprobs(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    found = token_logprobs(model, [Row(row, [-100, *row[1:]]) for row in rows], pad_id=0, batch_size=len(rows))
    return [row.tolist() for row in found]


def completions(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    laid = pad_sequences(
        [row[:3] for row in rows], [row[3:] for row in rows], pad_id=0, min_new_tokens=0, device=torch.device("cpu")
    )
    with torch.no_grad():
        scores = CompletionScorer(model, eos_ids=[1], entropy_trains=False)(model, laid, temperature=1.0)
    return [line[: len(row) - 3].tolist() for line, row in zip(scores.logprobs_BT, rows, strict=True)]


def values(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    function = OwnValue(copy.deepcopy(model.base_model))
    torch.nn.init.normal_(function.head.weight_H, generator=torch.Generator().manual_seed(0))
    laid = pad_sequences(
        [row[:3] for row in rows], [row[3:] for row in rows], pad_id=0, min_new_tokens=0, device=torch.device("cpu")
    )
    with torch.no_grad():
        found = function(laid, torch.empty(0))
    return [line[: len(row) - 3].tolist() for line, row in zip(found, rows, strict=True)]


def scores(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    judge = as_reward_model(copy.deepcopy(model), byte_tokenizer(), seed=0)
    return [[score] for score in scores_of(judge, rows, pad_id=0, batch_size=len(rows))]


def trained(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    batch = Collator(pad_id=0)([{"input_ids": row, "labels": row, "row_index": 0} for row in rows])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach()
    return [line[: len(row)].flatten().tolist() for line, row in zip(logits, rows, strict=True)]


def adapted(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    lora = LoraConfig(target_modules=["o_proj"], task_type="CAUSAL_LM")
    return trained(get_peft_model(copy.deepcopy(model), lora).eval(), rows)


def in_pairs(model: Any, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    rejected = {"prompt_ids": [7, 8], "rejected_ids": [9]}
    batch = PairCollator(0)([{**rejected, "chosen_ids": row, "row_index": 0} for row in rows])
    inputs = model_inputs(batch, attention=model.config._attn_implementation, shared_prompt=False)
    logits = model(**inputs).logits.detach()
    return [line[: len(row)].flatten().tolist() for line, row in zip(logits, rows, strict=False)]


@pytest.mark.parametrize("kind", ["phi3", "llama"])
@pytest.mark.parametrize("measure", [logprobs, completions, values, scores, trained, adapted, in_pairs])
def test_the_rows_beside_it_change_nothing(kind: str, measure: Callable[..., list[list[float]]]) -> None:
    model = load(kind)
    together = measure(model, ROWS)
    for row, found in zip(ROWS, together, strict=True):
        assert found == pytest.approx(measure(model, [row])[0], abs=1e-4)


def test_alone_a_row_is_encoded_as_upstream_does_it() -> None:
    model = load()
    config = model.config
    plain = type(model)(config).eval()
    plain.load_state_dict(model.state_dict())
    for row in ROWS:
        ids = torch.tensor([row])
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    short, long = (plain.model.rotary_emb(torch.zeros(1, 1), torch.arange(size)[None])[0][0, 5] for size in (12, 13))
    assert not torch.allclose(short, long, atol=1e-2)  # else this would be a test of nothing


def test_the_gradient_of_a_row_is_its_own() -> None:
    model = load()
    gradients = []
    for rows in ([ROWS[0]], [ROWS[0], ROWS[3]]):
        model.zero_grad()
        batch = Collator(pad_id=0)([{"input_ids": row, "labels": row, "row_index": 0} for row in rows])
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, :5].sum().backward()
        gradients.append(model.model.layers[0].self_attn.qkv_proj.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4 * float(gradients[0].std()))


def test_pairs_share_no_line_past_the_turn() -> None:
    model = load("llama")
    assert may_share_prompts(model, longest_line=TURN)
    assert not may_share_prompts(model, longest_line=TURN + 1)


def test_other_models_are_left_as_they_are() -> None:
    model = load("llama", rope_type="default", rope_theta=1e4)
    assert turns_at(model.config) is None
    assert encode_each_row_alone(model) is model
    assert not model.base_model._forward_pre_hooks


def test_dynamic_frequencies_do_not_change_where_rows_fit_the_model() -> None:
    model = load("llama", rope_type="dynamic", rope_theta=1e4, factor=4.0)  # it has 64 positions
    before = logprobs(model, ROWS)
    assert packs_exactly(model, longest_row=64, longest_line=256)  # positions begin anew in each row
    rows = [row * (64 // len(row)) for row in ROWS]
    together = logprobs(model, rows)
    assert [logprobs(model, [row])[0] for row in rows] == [pytest.approx(found, abs=1e-4) for found in together]
    assert logprobs(model, ROWS) == before
