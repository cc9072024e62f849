"""Log-probabilities and divergences of given tokens, against the plain computation."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignkit.evaluate.likelihood import Row, token_kls, token_logprobs

NUM_TOKENS = 50


def tiny(kind: str = "llama", seed: int = 1, **changes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"head_dim": 8} if kind == "gemma2" else {}
    config = AutoConfig.for_model(kind, vocab_size=NUM_TOKENS, initializer_range=0.3, **sizes, **changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def rows(num: int = 7) -> list[Row]:
    source = random.Random(3)
    made = []
    for _ in range(num):
        ids = [source.randrange(NUM_TOKENS) for _ in range(source.randint(2, 20))]
        made.append(Row(ids, [token if source.random() < 0.6 else -100 for token in ids]))
    return made


@pytest.mark.parametrize("kind", ["llama", "gemma2"])  # gemma2 caps its logits: its head is not plain
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_logprobs_equal_the_plain_computation(kind: str, batch_size: int) -> None:
    model = tiny(kind)
    found = token_logprobs(model, rows(), pad_id=0, batch_size=batch_size)
    for row, logprobs in zip(rows(), found, strict=True):
        plain = model(torch.tensor([list(row.input_ids)])).logits[0].log_softmax(-1)
        expected = [plain[t - 1, row.labels[t]].item() for t in range(1, len(row.labels)) if row.labels[t] != -100]
        assert logprobs.tolist() == pytest.approx(expected, abs=1e-4)
        assert len(expected) == row.num_scored


def test_a_float64_model_is_scored_in_float64() -> None:
    model = tiny()
    coarse = torch.cat(token_logprobs(model, rows(), pad_id=0, batch_size=3))
    fine = torch.cat(token_logprobs(model.double(), rows(), pad_id=0, batch_size=3))
    assert (coarse.dtype, fine.dtype) == (torch.float32, torch.float64)
    assert 0 < (fine - coarse).abs().max() < 1e-4


def test_kl_by_the_plain_computation_and_its_properties() -> None:
    policy, reference = tiny(), tiny(seed=2)
    found = token_kls(policy, reference, rows(), pad_id=0, batch_size=3)
    for row, kls in zip(rows(), found, strict=True):
        logp, logq = (m(torch.tensor([list(row.input_ids)])).logits[0].log_softmax(-1) for m in (policy, reference))
        expected = (logp.exp() * (logp - logq)).sum(-1)
        scored = [t - 1 for t in range(1, len(row.labels)) if row.labels[t] != -100]
        assert kls.tolist() == pytest.approx([expected[t].item() for t in scored], abs=1e-4)
        assert (kls > 0).all()
    itself = token_kls(policy, policy, rows(), pad_id=0, batch_size=3)
    assert max(kls.max().item() for kls in itself if len(kls)) == 0


def test_a_row_with_a_response_scores_the_response() -> None:
    row = Row.answered([1, 2, 3], [4, 5])
    assert (row.input_ids, row.labels, row.num_scored) == ([1, 2, 3, 4, 5], [-100, -100, -100, 4, 5], 2)


def test_a_row_without_anything_to_score_gives_nothing() -> None:
    (found,) = token_logprobs(tiny(), [Row([1, 2], [-100, -100])], pad_id=0, batch_size=2)
    assert found.tolist() == []


def test_the_mode_comes_back() -> None:
    model = tiny().train()
    token_logprobs(model, rows(2), pad_id=0, batch_size=2)
    assert model.training
