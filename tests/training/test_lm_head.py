"""The compact cross entropy against the plain one, by value and by gradient."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from alignkit.training import lm_head as lm_head_module
from alignkit.training.lm_head import cross_entropy, hidden_states, is_plain_head, lm_head, rows_at_once
from alignkit.training.log_probs import token_scores

LLAMA_LIKE = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


def _sum_of_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(hidden, weight, targets)[0]


def _sum_of_token_scores(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -token_scores(hidden, weight, targets).log_probs.sum()


def test_loss_gradients_and_accuracy_by_value() -> None:
    # One hidden unit: the logits are (0, ln 3), so p = (1/4, 3/4); the targets are 1 (likeliest) and 0.
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    loss, num_correct = cross_entropy(hidden, weight, torch.tensor([1, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 4))
    assert num_correct.item() == 1
    assert hidden.grad.flatten().tolist() == pytest.approx([-1 / 4 * math.log(3), 3 / 4 * math.log(3)])
    assert weight.grad.flatten().tolist() == pytest.approx([1 / 4 - 3 / 4, 3 / 4 - 1 / 4])


@pytest.mark.parametrize("logits_at_once", [1, 100, 250, 10**6])
@pytest.mark.parametrize("trained", [True, False], ids=["head trained", "head frozen"])
def test_any_chunking_is_the_plain_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, logits_at_once: int, trained: bool
) -> None:
    monkeypatch.setattr(lm_head_module, "_LOGITS_AT_ONCE", logits_at_once)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, requires_grad=trained)
    targets = torch.randint(50, (7,), generator=generator)
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / 3
    loss, num_correct = cross_entropy(hidden, weight, targets)
    wanted = torch.autograd.grad(plain, [hidden, weight] if trained else [hidden])
    found = torch.autograd.grad(loss / 3, [hidden, weight] if trained else [hidden])
    torch.testing.assert_close(loss / 3, plain)
    torch.testing.assert_close(found, wanted)
    assert num_correct.item() == ((hidden @ weight.T).argmax(-1) == targets).sum().item()


def test_no_positions_are_a_loss_of_zero_that_can_be_differentiated() -> None:
    hidden, weight = torch.ones(0, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    loss, num_correct = cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == num_correct.item() == 0
    assert weight.grad.abs().sum().item() == 0


def test_without_gradients_none_are_made() -> None:
    with torch.no_grad():
        loss, _ = cross_entropy(torch.ones(2, 4), torch.ones(5, 4, requires_grad=True), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(2 * math.log(5))
    assert loss.grad_fn is None


def test_bfloat16_loses_no_more_than_its_own_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_head_module, "_LOGITS_AT_ONCE", 8 * 50)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(64, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(50, 16, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(50, (64,), generator=generator)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    exact = F.cross_entropy(exact_hidden @ exact_weight.T, targets, reduction="sum")
    loss, _ = cross_entropy(hidden, weight, targets)
    exact.backward()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2**-9)
    for found, wanted in ((hidden.grad, exact_hidden.grad), (weight.grad, exact_weight.grad)):
        assert ((found - wanted).norm() / wanted.norm()).item() < 2**-7


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32], ids=["half weights", "whole weights"])
@pytest.mark.parametrize("of", [_sum_of_cross_entropy, _sum_of_token_scores])
def test_the_gradient_of_a_trained_head_is_summed_over_chunks_in_float32(
    monkeypatch: pytest.MonkeyPatch, of: Any, weights: torch.dtype
) -> None:
    """Rounded to bfloat16 once, not at each of 300 additions, where parts of a large sum are lost."""
    num_chunks, rows, vocabulary = 300, 4, 32
    monkeypatch.setattr(lm_head_module, "_LOGITS_AT_ONCE", rows * vocabulary)
    generator = torch.Generator().manual_seed(0)
    hidden = (1 + torch.randn(num_chunks * rows, 16, generator=generator)).bfloat16()
    weight = (0.1 * torch.randn(vocabulary, 16, generator=generator)).bfloat16().to(weights).requires_grad_()
    targets = torch.randint(vocabulary // 4, (len(hidden),), generator=generator)  # so that parts have one sign
    exact = weight.detach().float().requires_grad_()
    F.cross_entropy(hidden.float() @ exact.T, targets, reduction="sum").backward()
    of(hidden, weight, targets).backward()
    assert weight.grad.dtype == weights
    error = (weight.grad.float() - exact.grad).norm() / exact.grad.norm()
    assert error.item() < 2**-8


@pytest.mark.parametrize(("vocabulary", "positions"), [(500, 4_000), (16_000, 163), (49_152, 162), (152_000, 52)])
def test_a_cpu_makes_no_more_logits_at_a_time_than_use_the_head_well(vocabulary: int, positions: int) -> None:
    assert rows_at_once(torch.empty(vocabulary, 1)) == positions


def test_an_accelerator_makes_256_mb_of_logits_at_a_time() -> None:
    on_cpu, elsewhere = torch.empty(152_000, 1), torch.empty(152_000, 1, device="meta")
    assert [rows_at_once(weight) for weight in (on_cpu, elsewhere)] == [52, 441]
    assert rows_at_once(torch.empty(10**9, 0, device="meta")) == 1


@pytest.mark.parametrize(
    ("model", "plain"),
    [
        (GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)), True),
        (LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE)), True),
        (Gemma2ForCausalLM(Gemma2Config(**LLAMA_LIKE, final_logit_softcapping=30.0)), False),
        (GraniteForCausalLM(GraniteConfig(**LLAMA_LIKE, logits_scaling=8.0)), False),
        (CohereForCausalLM(CohereConfig(**LLAMA_LIKE, logit_scale=0.1)), False),
        (GPTJForCausalLM(GPTJConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, rotary_dim=2)), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedModel) else str(value),
)
def test_a_head_is_plain_where_nothing_is_done_to_its_product(model: PreTrainedModel, plain: bool) -> None:
    model.train()
    assert is_plain_head(model) is plain
    assert model.training
    assert not lm_head(model)._forward_hooks


def test_the_head_works_on_one_position_while_its_input_is_caught() -> None:
    model = LlamaForCausalLM(LlamaConfig(**LLAMA_LIKE))
    ids = torch.arange(10).view(2, 5)
    with hidden_states(lm_head(model)) as caught:
        assert model(input_ids=ids).logits.shape == (1, 1, 11)
    torch.testing.assert_close(caught[0] @ lm_head(model).weight.T, model(input_ids=ids).logits)
