"""What a file, a folder or a configuration is that is no causal language model, and what to take instead."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

TAKE = "take a causal (decoder-only) language model in safetensors, such as Qwen/Qwen3-0.6B"
_GGUF = "which is quantized for llama.cpp and cannot be trained: take the model in safetensors that it was made from"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_MADE_FOR = {
    "ForMaskedLM": "a masked language model, which fills gaps and continues nothing",
    "ForPreTraining": "an encoder, which fills gaps and continues nothing",
    "ForTokenClassification": "a classifier of tokens",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForMultipleChoice": "a model that chooses among answers",
    "ForImageClassification": "a classifier of images",
    "ForSpeechSeq2Seq": "a model of speech",
    "ForCTC": "a model of speech",
}
# Their bare backbones and heads read a text in both directions, unless the configuration says is_decoder.
_ENCODERS = ["albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mpnet", "modernbert"]
_ENCODERS += ["roberta", "roformer", "xlm-roberta", "vit", "clip", "wav2vec2"]


def kind_of_names(names: Collection[str]) -> str:
    """Say what the names of a folder's files show it to be; empty where they show no more than a model folder."""
    if "model_index.json" in names:
        return f"is a diffusion pipeline, which makes images: {TAKE}"
    if "modules.json" in names or "config_sentence_transformers.json" in names:
        return f"is an embedding model of sentence-transformers: {TAKE}"
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights and (files := sorted(name for name in names if name.endswith(".gguf"))):
        return f"holds a GGUF file, {files[0]}, {_GGUF}"
    if "config.json" in names:
        return ""
    if weights:
        return f"has weights, {min(weights)}, and no config.json, which says of what model: put that beside them"
    if "tokenizer.json" in names or "tokenizer_config.json" in names:
        return f"holds a tokenizer and no model, config.json is missing: {TAKE}"
    return ""


def kind_of_config(config: Mapping[str, Any]) -> str:
    """Say what `config.json` describes; empty where that may be a causal language model, or a reward model on one."""
    if "_diffusers_version" in config:
        return f"is a part of a diffusion pipeline, {config.get('_class_name')}: {TAKE}"
    found = config.get("architectures")
    name = str(found[0]) if isinstance(found, list) and found else str(config.get("model_type", ""))
    if config.get("is_encoder_decoder") is True:
        return f"is an encoder-decoder, {name}: {TAKE}"
    is_encoder = str(config.get("model_type")) in _ENCODERS and config.get("is_decoder") is not True
    if is_encoder and name.endswith("ForSequenceClassification"):
        return (
            f"is a text classifier, {name}, which can be a reward (classifier: and label:) and writes nothing: {TAKE}"
        )
    for end, what in _MADE_FOR.items():
        if name.endswith(end):
            return f"is {what}, {name}: {TAKE}"
    return f"is an encoder, {name}, which reads in both directions and continues nothing: {TAKE}" if is_encoder else ""


def kind_of_file(name: str) -> str:
    """Say what a file is, by its name."""
    ending = Path(name).suffix.lower()
    if ending == ".gguf":
        return f"GGUF file, {_GGUF}"
    if ending in _PICKLES:
        return "file in the pickle format, which can run code and is not read: take the model in safetensors"
    return "file; name the folder it is in"
