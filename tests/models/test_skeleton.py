"""The architecture before its weights: no memory, no file of weights, the same modules that loading fills."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignkit.choices import Init
from alignkit.config import ModelConfig
from alignkit.errors import ModelError
from alignkit.models.load import load_model, load_tokenizer
from alignkit.models.save import save_model
from alignkit.models.skeleton import skeleton
from alignkit.models.tiny import byte_tokenizer

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}


def random(**sizes: Any) -> ModelConfig:
    return ModelConfig(name="tiny", init=Init.random, config={**GPT2, **sizes})


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model folder."""
    tokenizer = load_tokenizer(random())
    model = load_model(random(), tokenizer=tokenizer, seed=0)
    save_model(model, tokenizer, tmp_path / "saved", jinja="{{ messages }}", stop_ids=[258])
    return tmp_path / "saved"


def test_random_weights_have_the_shapes_that_loading_gives_them_and_no_memory() -> None:
    built = skeleton(random())
    loaded = load_model(random(), tokenizer=load_tokenizer(random()), seed=0)
    assert shapes(built) == shapes(loaded)
    assert {weight.device.type for weight in built.parameters()} == {"meta"}


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    skeleton(random())
    assert torch.rand(1) == wanted


def test_a_folder_is_known_by_its_config_alone(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    built = skeleton(ModelConfig(name=str(saved)))
    assert shapes(built)["transformer.wte.weight"] == (261, 16)
    assert {weight.device.type for weight in built.parameters()} == {"meta"}


def test_an_adapter_is_known_by_its_base(saved: Path, tmp_path: Path) -> None:
    base = load_model(ModelConfig(name=str(saved)), tokenizer=load_tokenizer(random()), seed=0)
    adapter = get_peft_model(base, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    built = skeleton(ModelConfig(name=str(tmp_path / "adapter")))
    assert shapes(built) == shapes(skeleton(ModelConfig(name=str(saved))))


def refusal(model: ModelConfig) -> str:
    with pytest.raises(ModelError) as caught:
        skeleton(model)
    (line,) = str(caught.value).splitlines()
    return line


def test_sizes_that_do_not_fit_are_refused_in_one_line(saved: Path) -> None:
    assert refusal(random(n_head=3)) == (
        "model.config: gpt2 cannot be built: `embed_dim` must be divisible by num_heads (got `embed_dim`: 16 and "
        "`num_heads`: 3)."
    )
    llama = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 3}
    line = refusal(ModelConfig(name="tiny", init=Init.random, config=llama))
    assert line.startswith("model.config: llama cannot be built: ")
    assert line.endswith("The hidden size (16) is not a multiple of the number of attention heads (3).")


def test_random_weights_that_see_what_comes_behind_a_token_are_refused() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    roberta = ModelConfig(name="tiny", init=Init.random, config={"model_type": "roberta", **sizes})
    assert refusal(roberta) == (
        "model.config: a roberta reads in both directions and continues nothing: give it is_decoder: true, or take a "
        "causal one"
    )
    roberta.config["is_decoder"] = True
    ids = torch.tensor([[5, 6, 7, 8]])
    model = load_model(roberta, tokenizer=byte_tokenizer(), seed=0)
    first, second = (model(input_ids=rows).logits[0, :3] for rows in (ids, torch.tensor([[5, 6, 7, 9]])))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"model_type": "xlnet"}, "is an encoder, xlnet: take a causal (decoder-only) language model"),
        ({"model_type": "t5"}, "is an encoder-decoder, t5: take a causal (decoder-only) language model"),
        ({**GPT2, "n_head": 3}, "is a gpt2, its sizes do not fit: `embed_dim` must be divisible by num_heads"),
        ({"model_type": "llama", "hidden_size": 9, "num_attention_heads": 2}, "The hidden size (9) is not a multiple"),
        ({"model_type": "gpt22"}, "gpt22"),
        ({}, "model_type"),
    ],
)
def test_a_folder_that_is_no_causal_language_model(tmp_path: Path, config: dict[str, Any], line: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = refusal(ModelConfig(name=str(tmp_path)))
    assert told.startswith(f"model.name: {tmp_path}")
    assert line in told
