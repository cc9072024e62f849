"""The policy computes the same whether it samples, is looked at, or learns."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, OPTConfig

from alignkit.models.adapters import Adapters
from alignkit.models.tiny import byte_tokenizer, random_model
from alignkit.ppo.policy import Policy
from alignkit.ppo.reference import hold_start
from alignkit.ppo.scoring import pad_sequences
from alignkit.ppo.value import VALUE_ADAPTER, AdapterValue, ValueFunction


def test_layers_that_drop_out_by_themselves_do_not_where_they_are_recomputed() -> None:
    rates = {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}
    config = OPTConfig(
        vocab_size=50, hidden_size=16, word_embed_proj_dim=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, init_std=0.3, **rates,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    policy = Policy(
        model,
        None,
        ValueFunction(16),
        reference=hold_start(model, None, is_continued=False),
        eos_ids=[2],
        entropy_trains=False,
        detach_values=False,
    )
    policy.gradient_checkpointing_enable()
    rows = pad_sequences([[5, 6, 7]], [[8, 9]], pad_id=0, min_new_tokens=0, device=torch.device("cpu"))
    found = {}
    for mode in (False, True):
        policy.train(mode)
        assert any(module.training for module in policy.modules()) is mode  # layers recompute in training mode alone
        logprobs_BT, _, _ = policy(rows, 1.0)
        policy.zero_grad()
        logprobs_BT.sum().backward()
        gradients = [w.grad for w in model.parameters() if w.grad is not None]
        found[mode] = [logprobs_BT.detach(), *map(torch.clone, gradients)]
    assert all(map(torch.equal, found[True], found[False]))


def test_an_adapter_for_values_trains_what_leads_to_a_value() -> None:
    """Several processes wait for the gradient of every weight that trains."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    config |= {"intermediate_size": 16, "num_key_value_heads": 2, "tie_word_embeddings": False}
    model = random_model(config, tokenizer=byte_tokenizer(), seed=0)
    adapters = Adapters(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"])))
    value = AdapterValue(16, adapters)
    rows = pad_sequences([[5, 6, 7]], [[8, 9]], pad_id=0, min_new_tokens=0, device=torch.device("cpu"))
    for weight in value.head.parameters():
        torch.nn.init.ones_(weight)
    value(rows, torch.zeros(1, 2, 16)).sum().backward()
    trains = {name for name, w in adapters.model.named_parameters() if w.requires_grad and VALUE_ADAPTER in name}
    assert trains == {name for name, w in adapters.model.named_parameters() if w.grad is not None}
    assert len(trains) == 2
    assert all(weight.grad is not None for weight in value.weights())
