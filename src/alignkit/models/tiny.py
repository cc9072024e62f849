"""Models of a few megabytes with random weights, and the byte-level tokenizer they read with.

Nothing is downloaded and nothing is read from disk: both are functions of the code below, the configuration and a seed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignkit.errors import AlignkitError, ModelError, did_you_mean
from alignkit.json_files import read_object

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
# Language models by name that attend to what comes behind a token: permuted ones, and one whose prompts do.
_NOT_CAUSAL = ("xlnet", "cpmant")
FROM_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer that gives back any text exactly: one token per UTF-8 byte, nothing merged, nothing added.

    Returns:
        Ids 0 to 255 are the byte values; 256 to 260 are `SPECIAL_TOKENS` in their order.
    """
    core = Tokenizer(BPE(vocab={char: byte for byte, char in enumerate(_byte_chars())}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    pad, bos, eos, *turns = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=turns,
        clean_up_tokenization_spaces=False,
    )


def config_problems(config: dict[str, Any], folder: Path | None = None) -> list[str]:
    """List what is wrong with the keys of `model.config`, one line each; empty where a model can be tried.

    Args:
        config: the keys.
        folder: with the config.json that they are laid over; None where they are all there is.
    """
    model_type = config.get("model_type") if folder is None else read_object(folder / "config.json").get("model_type")
    if model_type is None:
        return ["model.config: model_type is missing; model=tiny_gpt2 and model=tiny_llama are complete examples"]
    if model_type not in CONFIG_MAPPING:
        return [f"model.config.model_type: unknown '{model_type}'{did_you_mean(str(model_type), CONFIG_MAPPING)}"]
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return [f"model.config.model_type: '{model_type}' has no causal language model in transformers"]
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    problems = []
    for key in config.keys() - {"model_type"}:
        if key in FROM_TOKENIZER:
            problems.append(f"model.config.{key}: comes from the tokenizer, leave it out")
        elif key not in known:
            problems.append(f"model.config.{key}: {model_type} has no such setting{did_you_mean(key, known)}")
    return sorted(problems)


def random_model(
    config: dict[str, Any],
    *,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    attn_implementation: str | None = None,
    folder: Path | None = None,
) -> PreTrainedModel:
    """Build a causal language model with fresh float32 weights.

    Args:
        config: `model_type` and keyword arguments of its transformers configuration class.
        tokenizer: gives the pad, bos and eos ids, and the vocabulary size unless the file of `folder` has a larger one.
        seed: the weights are a function of this and `config` alone; the global random state is left as it was.
        attn_implementation: as in transformers; None lets it choose.
        folder: with a config.json that `config` is laid over; None where `config` is all there is.

    Raises:
        ModelError: a key that the architecture does not have, or sizes it cannot be built with.
    """
    if problems := config_problems(config, folder):
        raise ModelError(*problems)
    try:
        # forked on the CPU alone: that is where the weights are drawn
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = _config(config, tokenizer, folder)
            _check_causal(built)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                built, attn_implementation=attn_implementation, dtype=torch.float32
            )
    except AlignkitError:
        raise
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        what = config.get("model_type") or folder
        raise ModelError(f"model.config: {what} cannot be built: {reason}") from error
    model.eval()
    return model


def _check_causal(config: PreTrainedConfig) -> None:
    if reads_both_ways(config):
        able = ": give it is_decoder: true, or" if hasattr(config, "is_decoder") else ":"
        what = f"a {config.model_type} reads in both directions and continues nothing"
        raise ModelError(f"model.config: {what}{able} take a causal one")


def reads_both_ways(config: PreTrainedConfig) -> bool:
    """Tell whether tokens see those behind them, so that a loss would be of what can be copied."""
    if config.model_type in _NOT_CAUSAL:
        return True
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def _config(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase, folder: Path | None) -> PreTrainedConfig:
    from_tokenizer = {key: getattr(tokenizer, key) for key in FROM_TOKENIZER[1:]}
    num_tokens = max(len(tokenizer), *(id + 1 for id in tokenizer.get_vocab().values()))
    if folder is None:
        return AutoConfig.for_model(**config, **from_tokenizer, vocab_size=num_tokens)
    built: PreTrainedConfig = AutoConfig.from_pretrained(folder, **config, **from_tokenizer)
    built.vocab_size = max(num_tokens, built.vocab_size)
    built.name_or_path = ""  # the folder has no weights: what is trained on these saves them too
    return built


def _byte_chars() -> list[str]:
    """The printable character that stands for each byte value in the ByteLevel pre-tokenizer of `tokenizers`.

    Bytes that print in Latin-1 stand for themselves; the others take the code points from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]
