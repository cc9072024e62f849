"""A model without weights: its configuration and its modules, for checks that must come before the download."""

from __future__ import annotations

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
)

from alignkit.choices import Init
from alignkit.config import ModelConfig
from alignkit.errors import ModelError
from alignkit.models.kinds import TAKE
from alignkit.models.load import load_tokenizer
from alignkit.models.source import ModelSource, config_folder, hub_options
from alignkit.models.tiny import random_model, reads_both_ways


def skeleton(model: ModelConfig) -> PreTrainedModel:
    """Build the architecture that `load_model` would fill, on the meta device: no memory, no weights read.

    Raises:
        ModelError: the configuration is none of a causal language model that transformers knows.
    """
    if model.init is Init.random:
        tokenizer = load_tokenizer(model)
        with torch.device("meta"):
            return random_model(
                model.config,
                tokenizer=tokenizer,
                seed=0,
                attn_implementation=model.attn_implementation,
                folder=config_folder(model),
            )
    source = ModelSource.of(model)
    if source.is_adapter:
        return skeleton(source.base.config)
    try:
        config = AutoConfig.from_pretrained(
            source.location, trust_remote_code=model.trust_remote_code, **hub_options(source)
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, StrictDataclassError) as error:
        raise ModelError(f"model.name: {model.name}: {' '.join(str(error).split())}") from error
    if config.is_encoder_decoder or reads_both_ways(config):
        what = "an encoder-decoder" if config.is_encoder_decoder else "an encoder"
        raise ModelError(f"model.name: {model.name} is {what}, {config.model_type}: {TAKE}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not model.trust_remote_code:
        raise ModelError(f"model.name: {model.name} is a {config.model_type}, no causal language model: {TAKE}")
    try:
        with torch.device("meta"):
            built: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=model.trust_remote_code, attn_implementation=model.attn_implementation
            )
    except ImportError as error:
        raise ModelError(f"model.attn_implementation: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"model.name: {model.name} is a {config.model_type}, its sizes do not fit: {error}") from error
    return built


def architecture_file(model: ModelConfig) -> str:
    """Say from which file `skeleton` reads the architecture: a path, a hub id, or the setting that holds it."""
    if model.init is Init.random:
        folder = config_folder(model)
        return "the setting model.config" if folder is None else str(folder / "config.json")
    base = ModelSource.of(model).base
    if base.folder is not None:
        return str(base.folder / "config.json")
    found = try_to_load_from_cache(base.config.name, "config.json", revision=base.config.revision)
    return found if isinstance(found, str) else f"{base.config.name} on the hub"
