"""A tiny model of random weights in a folder, as a server reads one, and an adapter for it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from alignkit.launch import compose_job
from alignkit.models.tiny import byte_tokenizer, random_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_folder(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `base`, with other weights."""
    return random_folder(tmp_path_factory.mktemp("other"), seed=1)


def random_folder(folder: Path, *, seed: int) -> Path:
    words = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_head=2"]
    config = compose_job("sft", [*words, "data.path=d"]).model.config
    tokenizer = byte_tokenizer()
    random_model(config, tokenizer=tokenizer, seed=seed, attn_implementation=None).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def adapted(base: Path) -> object:
    """The model under an adapter that changes what it says."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
