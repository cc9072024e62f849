"""A model without weights: its configuration and its modules, for checks that must come before the download."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignkit.config import Init, ModelConfig
from alignkit.errors import ModelError
from alignkit.models.source import base_of, hub_options, is_adapter, local_folder


def skeleton(model: ModelConfig) -> PreTrainedModel:
    """The architecture that `load_model` would fill, on the meta device: no memory, no weights read.

    Raises:
        ModelError: the configuration is none of a causal language model that transformers knows.
    """
    folder = local_folder(model.name)
    if model.init is Init.random:
        config = AutoConfig.for_model(**model.config)
    elif folder is not None and is_adapter(folder):
        return skeleton(base_of(folder, model))
    else:
        try:
            config = AutoConfig.from_pretrained(
                folder or model.name, trust_remote_code=model.trust_remote_code, **hub_options(model)
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model.name: {model.name}: {str(error).strip().splitlines()[0]}") from error
    try:
        with torch.device("meta"):
            built: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except ValueError as error:
        raise ModelError(f"model.name: {model.name} is a {config.model_type}, no causal language model") from error
    return built
