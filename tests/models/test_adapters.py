"""Adapters beside each other: each computes as PEFT has it compute, and a switch changes nothing else."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from alignkit.models.adapters import FIRST, Adapters
from alignkit.models.tiny import byte_tokenizer, random_model

CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "initializer_range": 0.3}
IDS = torch.tensor([[5, 6, 7, 8]])
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "a whole module beside": {"modules_to_save": ["ln_f"]},
}


def lora(**more: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["attn.c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM", **more)


@pytest.fixture(params=KINDS)
def adapters(request: pytest.FixtureRequest) -> Adapters:
    """A model whose three adapters (the first, a frozen one and one that trains) all differ."""
    model = get_peft_model(random_model(CONFIG, tokenizer=byte_tokenizer(), seed=0), lora(**KINDS[request.param]))
    adapters = Adapters(model.eval())
    for name, trains in (("frozen", False), ("trained", True)):
        adapters.copy(name, trains=trains)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if ".lora_B." in name or ".modules_to_save." in name:
            weight.data += torch.randn(weight.shape, generator=generator) / 4
    return adapters


@torch.no_grad()
def logits(adapters: Adapters) -> Tensor:
    found: Tensor = adapters.model(input_ids=IDS).logits
    return found


def trained(adapters: Adapters) -> set[str]:
    return {name for name, weight in adapters.model.named_parameters() if weight.requires_grad}


def test_an_adapter_computes_as_peft_has_it_compute(adapters: Adapters) -> None:
    found: dict[str | None, Tensor] = {}
    for name in (FIRST, "frozen", "trained", None):
        with adapters.computing(name):
            found[name] = logits(adapters)
    assert torch.equal(found[FIRST], logits(adapters))
    for name in (FIRST, "frozen", "trained"):
        adapters.model.set_adapter(name)
        assert torch.equal(found[name], logits(adapters))
    with adapters.model.disable_adapter():
        assert torch.equal(found[None], logits(adapters))
    assert len({tuple(one.flatten().tolist()) for one in found.values()}) == 4


def test_what_trains_is_what_trained_before(adapters: Adapters) -> None:
    before = trained(adapters)
    assert {name for name in before if ".default" in name}
    assert {name for name in before if ".trained" in name}
    assert not {name for name in before if ".frozen" in name}
    with adapters.computing("frozen"):
        assert trained(adapters) == before
        with adapters.computing(None):
            assert trained(adapters) == before
        frozen = logits(adapters)
    with adapters.computing("frozen"):
        assert torch.equal(frozen, logits(adapters))
    assert trained(adapters) == before


def test_an_error_leaves_the_first_adapter_computing(adapters: Adapters) -> None:
    before = logits(adapters)
    with pytest.raises(ZeroDivisionError), adapters.computing("trained"):
        raise ZeroDivisionError
    assert torch.equal(before, logits(adapters))


def test_a_twin_is_the_first_adapter(adapters: Adapters) -> None:
    adapters.copy("twin", trains=False)
    before = logits(adapters)
    with adapters.computing("twin"):
        assert torch.equal(before, logits(adapters))


def test_the_first_adapter_is_what_it_was_when_the_others_are_gone(adapters: Adapters) -> None:
    before, weights = logits(adapters), adapters.weights(FIRST)
    adapters.drop_others()
    assert list(adapters.model.peft_config) == [FIRST]
    assert torch.equal(before, logits(adapters))
    assert {key: weight.sum() for key, weight in adapters.weights(FIRST).items()} == {
        key: weight.sum() for key, weight in weights.items()
    }
    assert not [name for name, _ in adapters.model.named_parameters() if ".frozen" in name or ".trained" in name]


def test_adding_an_adapter_draws_no_random_number(adapters: Adapters) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    adapters.copy("twin", trains=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_activations_are_recomputed_by_the_adapter_that_computed_them(adapters: Adapters) -> None:
    """The backward pass runs when no block is entered any more, and the adapters alternate in it."""
    gradients = []
    for recomputes in (False, True):
        if recomputes:
            how = {"use_reentrant": False, "context_fn": adapters.while_recomputing}
            adapters.model.get_base_model().activation_checkpointing_enable(activation_checkpointing_kwargs=how)
            for module in adapters.model.modules():  # dropout stays off
                module.training = getattr(module, "gradient_checkpointing", False)
        adapters.model.zero_grad()
        loss = adapters.model(input_ids=IDS).logits.pow(2).mean()
        with adapters.computing("trained"):
            loss = loss + adapters.model(input_ids=IDS).logits.pow(2).mean()
        loss.backward()
        gradients.append({n: w.grad.clone() for n, w in adapters.model.named_parameters() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == trained(adapters)
    assert all(torch.allclose(gradients[0][name], gradients[1][name], rtol=1e-5, atol=1e-6) for name in gradients[0])
    assert any(bool(gradient.any()) for name, gradient in gradients[0].items() if ".trained" in name)
