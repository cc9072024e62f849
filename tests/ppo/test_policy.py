"""The policy computes the same whether it samples, is looked at, or learns."""

import torch
from transformers import AutoModelForCausalLM, OPTConfig

from alignkit.ppo.policy import Policy
from alignkit.ppo.scoring import side_by_side
from alignkit.ppo.value import ValueFunction


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
        is_continued=False,
        eos_ids=[2],
        entropy_trains=False,
        detach_values=False,
    )
    policy.gradient_checkpointing_enable()
    rows = side_by_side([[5, 6, 7]], [[8, 9]], pad_id=0, min_new_tokens=0, device=torch.device("cpu"))
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
