"""Tiny models of many architectures: as small as they must be, and they compute."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from alignkit.errors import ModelError
from alignkit.models.shrunk import shrunk_model

STATE_SPACE = ["mamba", "mamba2", "falcon_mamba", "bamba", "falcon_h1", "nemotron_h"]
ATTENTION = ["llama", "gpt2", "gptj", "falcon", "phi3", "gemma4_text", "deepseek_v3", "longcat_flash"]


@pytest.mark.parametrize("model_type", [*STATE_SPACE, *ATTENTION])
def test_an_architecture_is_built_small_and_computes(model_type: str) -> None:
    config = CONFIG_MAPPING[model_type]()
    model = shrunk_model(config, seed=0)
    embeddings = model.get_input_embeddings().weight
    assert len(embeddings) == config.get_text_config().vocab_size
    assert sum(weight.numel() for weight in model.parameters()) < 100e6
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits).all()


def test_an_architecture_that_cannot_be_built_so_small_is_named() -> None:
    config = CONFIG_MAPPING["reformer"]()  # which must be told that it is a decoder
    with pytest.raises(ModelError, match="no tiny model can be built like this reformer: If you want to use"):
        shrunk_model(config, seed=0)
