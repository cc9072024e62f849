"""Where each kind of value function starts: at zero, at a saved head, at the scores of a reward model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from alignkit.choices import ValueModel
from alignkit.config import ModelConfig, ValueConfig
from alignkit.models.adapters import Adapters
from alignkit.models.tiny import byte_tokenizer, random_model
from alignkit.ppo.value import VALUE_ADAPTER, VALUE_HEAD, AdapterValue, OwnValue, ValueFunction, ValueHead
from alignkit.ppo.value_init import build_value_function

HIDDEN = 16
LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": 2}
LLAMA |= {"intermediate_size": 16, "num_key_value_heads": 2, "tie_word_embeddings": False, "dtype": "float32"}
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"]}


def policy() -> Any:
    return random_model(LLAMA, tokenizer=byte_tokenizer(), seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy, the head of a run of PPO, and reward models: all weights of one, the adapter of another."""
    policy().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "ppo").mkdir()
    head = ValueHead(HIDDEN)
    with torch.no_grad():
        head.weight_H.copy_(torch.arange(HIDDEN))
        head.bias.fill_(0.5)
    head.save(tmp_path / "ppo")
    config = AutoConfig.from_pretrained(tmp_path / "policy", num_labels=1, pad_token_id=0)
    reward = AutoModelForSequenceClassification.from_config(config)
    reward.save_pretrained(tmp_path / "reward")
    adapter = get_peft_model(reward, LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, **LORA))
    adapter.save_pretrained(str(tmp_path / "reward-adapter"))
    return tmp_path


def built(value: ValueConfig, folder: Path, adapters: Adapters | None = None) -> ValueFunction:
    model = ModelConfig(str(folder / "policy"), dtype="float32")
    return build_value_function(value, model, adapters, hidden_size=HIDDEN, tokenizer=byte_tokenizer(), seed=0)


def test_a_shared_one_starts_at_zero(folder: Path) -> None:
    function = built(ValueConfig(), folder)
    assert type(function) is ValueFunction
    assert function.head(torch.randn(2, 3, HIDDEN)).tolist() == [[0.0] * 3] * 2


def test_a_shared_one_goes_on_from_the_head_of_a_run(folder: Path) -> None:
    function = built(ValueConfig(start=str(folder / "ppo")), folder)
    assert function.head(torch.ones(1, 1, HIDDEN)).item() == sum(range(HIDDEN)) + 0.5


def test_a_backbone_of_its_own_is_a_copy_of_the_policy_that_trains(folder: Path) -> None:
    function = built(ValueConfig(model=ValueModel.own), folder)
    assert isinstance(function, OwnValue)
    wanted = policy().model.state_dict()
    assert {name: bool((wanted[name] == tensor).all()) for name, tensor in function.backbone.state_dict().items()} == (
        dict.fromkeys(wanted, True)
    )
    assert all(weight.requires_grad for weight in function.weights())
    assert function.head.weight_H.tolist() == [0.0] * HIDDEN


def test_a_backbone_of_its_own_starts_at_the_scores_of_a_reward_model(folder: Path) -> None:
    function = built(ValueConfig(model=ValueModel.own, start=str(folder / "reward")), folder)
    assert isinstance(function, OwnValue)
    saved = load_file(folder / "reward" / "model.safetensors")
    assert torch.equal(function.head.weight_H, saved["score.weight"][0])
    assert function.head.bias.item() == 0.0
    found = function.backbone.state_dict()
    assert {f"model.{name}" for name in found} == saved.keys() - {"score.weight"}
    assert all(torch.equal(tensor, saved[f"model.{name}"]) for name, tensor in found.items())


def test_an_adapter_starts_as_that_of_the_policy_with_a_head_of_zeros(folder: Path) -> None:
    adapters = Adapters(get_peft_model(policy(), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **LORA)))
    function = built(ValueConfig(model=ValueModel.adapter), folder, adapters)
    assert isinstance(function, AdapterValue)
    first, second = adapters.weights("default"), adapters.weights(VALUE_ADAPTER)
    assert len(first) == 2
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert function.head.weight_H.tolist() == [0.0] * HIDDEN


def test_an_adapter_starts_at_the_scores_of_a_reward_run(folder: Path) -> None:
    adapters = Adapters(get_peft_model(policy(), LoraConfig(task_type="CAUSAL_LM", **LORA)))
    function = built(ValueConfig(model=ValueModel.adapter, start=str(folder / "reward-adapter")), folder, adapters)
    saved = load_file(folder / "reward-adapter" / "adapter_model.safetensors")
    (head,) = [tensor for name, tensor in saved.items() if name.endswith("score.weight")]
    assert torch.equal(function.head.weight_H, head[0])
    found = adapters.weights(VALUE_ADAPTER)
    assert {name: torch.equal(tensor, saved[name]) for name, tensor in found.items()} == dict.fromkeys(found, True)
    assert not torch.equal(*(next(iter(adapters.weights(name).values())) for name in ("default", VALUE_ADAPTER)))


def test_the_file_of_a_head_is_named(folder: Path) -> None:
    assert load_file(folder / "ppo" / VALUE_HEAD).keys() == {"weight_H", "bias"}
