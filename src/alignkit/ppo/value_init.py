"""How a value function starts: at zero, where another run of PPO left off, or at the scores of a reward run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from alignkit.choices import Init, Quantization, ValueModel
from alignkit.config import ModelConfig, ValueConfig
from alignkit.models.adapters import Adapters
from alignkit.models.load import load_merged, load_weights, read_adapter_config
from alignkit.models.lora import build_lora
from alignkit.models.reward import HEADS, adapter_and_head, score_head
from alignkit.models.skeleton import skeleton
from alignkit.models.source import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ModelSource,
    weight_shapes,
)
from alignkit.ppo.value import (
    VALUE_ADAPTER,
    VALUE_FOLDER,
    VALUE_HEAD,
    AdapterValue,
    OwnValue,
    ValueFunction,
    backbone_of,
)

_STRENGTH = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")  # of LoRA


def check_value_start(value: ValueConfig, model: ModelConfig, lora: Mapping[str, Any]) -> list[str]:
    """Find what is wrong with `value.start`, one line each; no weights are read.

    Args:
        value: the section, with a start.
        model: the section of the policy.
        lora: the section; empty where the policy's adapter is trained further, or there is none.
    """
    start = ModelSource.of(ModelConfig(str(value.start)))
    folder = start.folder
    if folder is None:
        return [f"value.start: there is no run directory {value.start}"]
    if not start.is_reward and not (folder / VALUE_HEAD).is_file():
        return [f"value.start: {folder} has no value head, no {VALUE_HEAD}: a run of alignkit ppo has one"]
    kind = _kind_of(start)
    if kind is not value.model:
        return [_other_kind(start, kind, value.model)]
    if kind is ValueModel.adapter:
        return _adapter_problems(start, model, lora)
    bare = skeleton(model)
    if kind is ValueModel.own:
        theirs = skeleton(ModelConfig(str(_saved_in(start))))
        same = _shapes(theirs) == _shapes(bare)
        return [] if same else [f"value.start: {folder} has another architecture than {model.name}"]
    size, states = weight_shapes(folder / VALUE_HEAD)["weight_H"][0], bare.config.get_text_config().hidden_size
    reads = f"value.start: the value head of {folder} reads states of {size} numbers, this model's have {states}"
    return [] if size == states else [reads]


def build_value_function(
    value: ValueConfig,
    model: ModelConfig,
    adapters: Adapters | None,
    *,
    hidden_size: int,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> ValueFunction:
    """Build the value function that the section describes, with the weights it starts from.

    Args:
        value: the section, which `check_value_start` has passed.
        model: the section of the policy.
        adapters: of the policy as it starts; None where every weight trains.
        hidden_size: of the policy.
        tokenizer: of the policy.
        seed: of random weights.
    """
    start = None if value.start is None else ModelSource.of(ModelConfig(value.start))
    if value.model is ValueModel.own:
        return _own(model, start, tokenizer=tokenizer, seed=seed)
    function = ValueFunction(hidden_size)
    if value.model is ValueModel.adapter:
        assert adapters is not None
        function = AdapterValue(hidden_size, adapters)
    if start is None:
        return function
    assert start.folder is not None
    if start.is_reward:
        assert adapters is not None
        weights, head = adapter_and_head(start.folder)
        adapters.set(VALUE_ADAPTER, weights)
        _start_head_at(function, head)
    else:
        function.load(start.folder)
    return function


def _own(model: ModelConfig, start: ModelSource | None, *, tokenizer: PreTrainedTokenizerBase, seed: int) -> OwnValue:
    """A backbone that trains: a copy of the policy as it starts, or that of another run."""
    if start is None:
        return OwnValue(backbone_of(load_merged(model, tokenizer=tokenizer, seed=seed, trainable=True)))
    section = replace(model, init=Init.pretrained, config={}, revision=None, quantization=Quantization.none)
    assert start.folder is not None
    if start.is_reward:
        scores = replace(section, name=str(start.folder))
        loaded = load_weights(scores, trainable=True, auto_class=AutoModelForSequenceClassification)
        function = OwnValue(backbone_of(loaded))
        _start_head_at(function, score_head(loaded).weight)
        return function
    saved = replace(section, name=str(start.folder / VALUE_FOLDER))
    function = OwnValue(load_weights(saved, trainable=True, auto_class=AutoModel))
    function.head.load(start.folder)
    return function


@torch.no_grad()
def _start_head_at(function: ValueFunction, weight: Any) -> None:
    """Expect of a completion the score that a reward model would give it if it ended here."""
    function.head.weight_H.copy_(weight[0])


def _saved_in(start: ModelSource) -> Path:
    """The folder with the weights below a run's head, where they are not the policy's own."""
    assert start.folder is not None
    return start.folder if start.is_reward else start.folder / VALUE_FOLDER


def _kind_of(start: ModelSource) -> ValueModel:
    """What holds the states that the head of a run reads."""
    saved = _saved_in(start)
    if (saved / ADAPTER_CONFIG).is_file():
        return ValueModel.adapter
    return ValueModel.own if (saved / "config.json").is_file() else ValueModel.shared


def _other_kind(start: ModelSource, kind: ValueModel, wanted: ValueModel) -> str:
    folder = start.folder
    if not start.is_reward:
        return f"value.start: the value function of {folder} is of the kind {kind}: it goes on with value.model={kind}"
    what = "an adapter" if kind is ValueModel.adapter else "a full model"
    why = ", whose head reads states of its own and not the policy's" if wanted is ValueModel.shared else ""
    return f"value.start: {folder} is a reward run, {what}{why}: it goes on with value.model={kind}"


def _adapter_problems(start: ModelSource, model: ModelConfig, lora: Mapping[str, Any]) -> list[str]:
    """The value adapter must be one like the policy's: same base, same layers, same strength."""
    config, shapes = _adapter_of(model, lora)
    base, folder, saved = ModelSource.of(model).base, start.folder, _saved_in(start)
    bare = skeleton(model)
    if not start.sits_on(base, commit=getattr(bare.config, "_commit_hash", None)):
        return [f"value.start: the adapter {folder} was trained on another base than {base.config.name}"]
    theirs: Any = read_adapter_config(saved)
    problems = [
        f"value.start: {folder} has lora.{key}={getattr(theirs, key)}, and this run {getattr(config, key)}: the value "
        "function's LoRA is the policy's, give both the same"
        for key in _STRENGTH
        if getattr(theirs, key) != getattr(config, key)
    ]
    found = {key: shape for key, shape in weight_shapes(saved / ADAPTER_WEIGHTS).items() if not key.endswith(HEADS)}
    if not problems and found != shapes:
        problems.append(f"value.start: {folder} has LoRA on other layers than this run: give both the same lora.*")
    return problems


def _adapter_of(model: ModelConfig, lora: Mapping[str, Any]) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The configuration of the policy's adapter, and the shape of each of its weights."""
    if not lora:
        folder = ModelSource.of(model).folder
        assert folder is not None
        return read_adapter_config(folder), weight_shapes(folder / ADAPTER_WEIGHTS)
    bare = skeleton(model)
    adapted = get_peft_model(bare, build_lora(dict(lora), bare))
    weights = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return adapted.active_peft_config, {key: weight.shape for key, weight in weights.items()}


def _shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Of the weights below the head; how many tokens there are is left open, a reward run may have one more."""
    backbone = backbone_of(model)
    embeddings: Any = backbone.get_input_embeddings()
    return {
        name: weight.shape[1:] if weight is embeddings.weight else weight.shape
        for name, weight in backbone.named_parameters()
    }
