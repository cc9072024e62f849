"""The compact cross entropy against the plain one, by value and by gradient."""

import math

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
from alignkit.training.lm_head import cross_entropy, hidden_states, is_plain_head, lm_head

LLAMA_LIKE = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
}


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
