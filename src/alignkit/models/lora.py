"""LoRA (Hu et al. 2021, arXiv:2106.09685): which layers it goes on, and PEFT's configuration for it."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignkit.errors import ModelError, as_yaml, did_you_mean

ATTENTION = "attention"
_LINEAR = (nn.Linear, Conv1D)
_ON_PARAMETERS = re.compile(r"ParamWrapper does not work (?:with|when) `?(\w+)")
_ADAPTABLE = (*_LINEAR, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
# What needs nothing but the weights; others start from a pass over data, or quantize the base.
_STARTS = ("gaussian", "olora", "pissa", "orthogonal", "mica")
_TAKE_FROM_BASE = ("olora", "pissa")
_ATTENTION_BLOCK = re.compile("attn|attention", re.IGNORECASE)
_ATTENTION_LAYER = re.compile(r"attn|attention|query|key|value|qkv|^[qkvo](_|$)", re.IGNORECASE)


def build_lora(lora: dict[str, Any], model: PreTrainedModel | PeftModel, *, task_type: str = "CAUSAL_LM") -> LoraConfig:
    """Build PEFT's configuration from the section `lora`, with its target modules found in this model.

    Args:
        lora: keyword arguments of `peft.LoraConfig`, names already checked. `target_modules` may also be `attention`:
            every linear layer inside the attention blocks, whatever this architecture calls them.
        model: the loaded base.
        task_type: PEFT's name of what the model is for; a wrong one leaves new heads untrained, silently.

    Raises:
        ModelError: target modules that this model does not have, or that cannot carry LoRA.
    """
    if isinstance(model, PeftModel):
        raise ModelError("lora: model.name is an adapter already: leave lora empty to train it on, or merge it first")
    modules = dict(model.named_modules())
    arguments = {"task_type": task_type, **lora}
    if arguments.get("target_modules", ATTENTION) == ATTENTION:
        arguments["target_modules"] = attention_layers(model)
    targets = arguments["target_modules"]
    targeted = _targeted(targets, modules)
    # GPT-2's Conv1D keeps its weight as (inputs, outputs)
    transposed = any(isinstance(modules[name], Conv1D) for name in targeted)
    problems = _target_problems(targets, targeted, model) + _saved_problems(lora.get("modules_to_save"), modules)
    problems += _start_problems(lora.get("init_lora_weights", True), model, transposed=transposed)
    problems += _token_problems(lora.get("trainable_token_indices"), model)
    problems += _parameter_problems(lora.get("target_parameters"), model)
    is_named = targets != "all-linear" and not lora.get("target_parameters")  # else PEFT finds parameters, too
    adapted = targeted if is_named else [*modules, *(name for name, _ in model.named_parameters())]
    problems += [line for key in ("rank_pattern", "alpha_pattern") for line in _pattern_problems(key, lora, adapted)]
    if problems:
        raise ModelError(*problems)
    arguments.setdefault("fan_in_fan_out", transposed)
    try:
        return LoraConfig(**arguments)
    except (ValueError, TypeError) as error:
        raise ModelError(f"lora: {error}") from error


def check_lora(lora: dict[str, Any], bare: PreTrainedModel) -> None:
    """Put the adapter on a model without weights, where PEFT says in no time what it would say after a download.

    Args:
        lora: as for `build_lora`.
        bare: on the meta device; it has the adapter from now on.

    Raises:
        ModelError: this model cannot carry it.
    """
    config = build_lora(lora, bare)
    with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says it again when it means it
        try:
            get_peft_model(bare, config)
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
            raise ModelError(_refusal(error, lora, bare.config.model_type)) from error


def _refusal(error: Exception, lora: Mapping[str, Any], kind: str) -> str:
    """Say why PEFT refuses an adapter; where it wraps parameters, by the setting that these cannot have."""
    if (found := _ON_PARAMETERS.search(str(error))) and found[1] in lora:
        return (
            f"lora.{found[1]}={as_yaml(lora[found[1]])}: the experts of this {kind} model are parameters, no layers, "
            "and LoRA on parameters cannot have it: leave it out, or take lora.target_modules=attention"
        )
    return f"lora: PEFT cannot put it on this {kind} model: {' '.join(str(error).split())}"


def leaves_base(config: Any) -> bool:
    """Tell whether the weights below an adapter are those of its base: biases as they were, and no part taken out."""
    return config.bias == "none" and str(config.init_lora_weights).split("_niter")[0] not in _TAKE_FROM_BASE


def attention_layers(model: PreTrainedModel) -> list[str]:
    """List the linear layers inside attention blocks, as `block.layer`: `attn.c_attn`, `self_attn.q_proj`.

    The block's name is kept because the layer's alone can be ambiguous: GPT-2 has a `c_proj` in its MLP too.

    Raises:
        ModelError: no block is called attention.
    """
    found = set()
    for name, module in model.named_modules():
        *blocks, layer = name.split(".")
        if isinstance(module, _LINEAR) and any(_ATTENTION_BLOCK.search(block) for block in blocks):
            found.add(f"{blocks[-1]}.{layer}")
    if not found:
        raise ModelError(
            f"lora.target_modules: this {model.config.model_type} model calls no block attention; name its layers: "
            f"{', '.join(_linear_names(model))}"
        )
    return sorted(found)


def _targeted(targets: str | list[str], modules: dict[str, nn.Module]) -> list[str]:
    """Names of the modules that PEFT will match: all linear ones, a regular expression, or names and their ends."""
    if targets == "all-linear":
        return [name for name, module in modules.items() if isinstance(module, _LINEAR)]
    if isinstance(targets, str):
        try:
            return [name for name in modules if re.fullmatch(targets, name)]
        except re.error as error:
            raise ModelError(f"lora.target_modules: '{targets}' is no regular expression: {error}") from error
    return [name for name in modules if any(_ends_in(name, target) for target in targets)]


def _target_problems(targets: str | list[str], targeted: list[str], model: PreTrainedModel) -> list[str]:
    if targets == "all-linear":  # PEFT leaves the output layer out by itself
        return []
    modules = dict(model.named_modules())
    output = model.get_output_embeddings()
    problems = []
    for target in [targets] if isinstance(targets, str) else targets:
        matched = targeted if isinstance(targets, str) else [name for name in targeted if _ends_in(name, target)]
        if any(modules[name] is output for name in matched):
            problems.append(f"lora.target_modules: '{target}' is the output layer, which LoRA cannot train here")
        elif not matched or not all(isinstance(modules[name], _ADAPTABLE) for name in matched):
            problems.append(_mismatch(target, model))
    return problems


def _saved_problems(names: Iterable[str] | None, modules: dict[str, nn.Module]) -> list[str]:
    known = {name.rpartition(".")[2] for name in modules}
    return [
        f"lora.modules_to_save: '{name}' matches no module of this model{did_you_mean(name, known)}"
        for name in names or ()
        if not any(_ends_in(module, name) for module in modules)
    ]


def _start_problems(start: bool | str, model: PreTrainedModel, *, transposed: bool) -> list[str]:
    setting = f"lora.init_lora_weights={start}"
    if isinstance(start, bool):
        return []
    if start.startswith("pissa_niter_"):
        return [f"{setting}: each time the run is loaded it takes another part out of the base; use pissa"]
    if start not in _STARTS:
        return [f"{setting} is no way to start an adapter here; leave it out, or take one of {', '.join(_STARTS)}"]
    if start == "olora" and transposed:
        return [f"{setting} takes the Conv1D layers of this model the wrong way around; use pissa"]
    if start in _TAKE_FROM_BASE and not model.name_or_path:
        return [f"{setting} takes a part out of the base, and random weights are saved without it; leave it out"]
    return []


def _token_problems(tokens: Iterable[int] | Mapping[str, Iterable[int]] | None, model: PreTrainedModel) -> list[str]:
    """Name the tokens that no embedding has, and a head whose bias PEFT would leave out of the logits."""
    if not tokens:
        return []
    embeddings: Any = model.get_input_embeddings()
    size = embeddings.weight.shape[0]
    ids = [token for some in tokens.values() for token in some] if isinstance(tokens, Mapping) else list(tokens)
    problems = [
        f"lora.trainable_token_indices: {token} is no token of this model, which has 0 to {size - 1}"
        for token in ids
        if not 0 <= token < size
    ]
    head = model.get_output_embeddings()
    if model.config.get_text_config().tie_word_embeddings and getattr(head, "bias", None) is not None:
        problems.append("lora.trainable_token_indices: PEFT would leave out the bias of this model's tied output layer")
    return problems


def _parameter_problems(names: Iterable[str] | None, model: PreTrainedModel) -> list[str]:
    known = [name for name, _ in model.named_parameters()]
    return [
        f"lora.target_parameters: '{name}' matches no parameter of this model"
        f"{did_you_mean(name, {'.'.join(parameter.split('.')[-2:]) for parameter in known})}"
        for name in names or ()
        if not any(_ends_in(parameter, name) for parameter in known)
    ]


def _pattern_problems(key: str, lora: Mapping[str, Any], adapted: Sequence[str]) -> Iterator[str]:
    """Name the patterns that match nothing of what LoRA is put on, as PEFT matches them, one line each."""
    for pattern in lora.get(key) or ():
        try:
            matches = any(re.match(rf"(.*\.)?({pattern})$", name) for name in adapted)
        except re.error as error:
            yield f"lora.{key}: '{pattern}' is no regular expression: {error}"
            continue
        if not matches:
            near = did_you_mean(str(pattern), {name.rpartition(".")[2] for name in adapted})
            yield f"lora.{key}: '{pattern}' has no effect: it matches no layer that LoRA is put on{near}"


def _mismatch(target: str, model: PreTrainedModel) -> str:
    names = _linear_names(model)
    # spelling says little between families: q_proj looks like GPT-2's c_proj and means its c_attn
    meant = difflib.get_close_matches(target, names, n=1, cutoff=0.85)
    if not meant and _ATTENTION_LAYER.search(target.rpartition(".")[2]):
        meant = [layer.rpartition(".")[2] for layer in attention_layers(model)]
    hint = f"; did you mean '{meant[0]}'?" if meant else did_you_mean(target, names) or ";"
    return (
        f"lora.target_modules: '{target}' matches no linear layer of this {model.config.model_type} model{hint} "
        f"it has {', '.join(names)}"
    )


def _linear_names(model: PreTrainedModel) -> list[str]:
    output = model.get_output_embeddings()
    layers = [name for name, m in model.named_modules() if isinstance(m, _LINEAR) and m is not output]
    return sorted({name.rpartition(".")[2] for name in layers})


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")
