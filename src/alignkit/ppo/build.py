"""Put a policy together: the model that training starts from, its adapter, its value function and its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase

from alignkit.config import ModelConfig, ValueConfig
from alignkit.models.adapters import Adapters
from alignkit.models.load import load_model
from alignkit.models.lora import build_lora
from alignkit.models.source import ModelSource
from alignkit.ppo.policy import Policy
from alignkit.ppo.reference import Reference, hold_named, hold_start
from alignkit.ppo.value import NoValueFunction
from alignkit.ppo.value_init import build_value_function
from alignkit.rewards.backbone import Backbone
from alignkit.sampling.settings import stop_ids


def build_policy(
    model: ModelConfig,
    lora: Mapping[str, Any],
    value: ValueConfig,
    *,
    reference: str | None,
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    entropy_trains: bool,
    has_critic: bool,
    has_reference: bool,
    seed: int,
) -> Policy:
    """Load the policy as it is before the first update.

    Args:
        model: the section of the policy.
        lora: the section; where it is empty, the adapter that the model has is trained further, or every weight is.
        value: the section, which `check_value_start` has passed.
        reference: name of a model, which `reference_problems` has passed; None is the policy as it starts.
        tokenizer: of the policy.
        end_ids: the tokens that end a turn of the template.
        entropy_trains: the loss has an entropy bonus.
        has_critic: the advantages need a value function.
        has_reference: there is a KL penalty at some time.
        seed: of weights that are drawn at random.

    Raises:
        ModelError: a model cannot be loaded.
    """
    loaded = _load(model, lora, tokenizer=tokenizer, seed=seed)
    adapters = Adapters(loaded) if isinstance(loaded, PeftModel) else None
    hidden_size = loaded.config.get_text_config().hidden_size
    function = (
        build_value_function(value, model, adapters, hidden_size=hidden_size, tokenizer=tokenizer, seed=seed)
        if has_critic
        else NoValueFunction()
    )
    return Policy(
        loaded,
        adapters,
        function,
        reference=_reference(reference, model, lora, policy=loaded, adapters=adapters, seed=seed)
        if has_reference
        else None,
        eos_ids=stop_ids(loaded, end_ids),
        entropy_trains=entropy_trains,
        detach_values=value.detach,
    )


def _reference(
    name: str | None,
    model: ModelConfig,
    lora: Mapping[str, Any],
    *,
    policy: Any,
    adapters: Adapters | None,
    seed: int,
) -> Reference:
    is_continued = adapters is not None and not lora
    if name is None:
        return hold_start(policy, adapters, is_continued=is_continued)
    return hold_named(name, model, adapters, is_continued=is_continued, seed=seed)


def backbone_for_rewards(policy: Policy, model: ModelConfig) -> Backbone | None:
    """Return the frozen weights that reward runs may share with the policy; None where every weight trains.

    Args:
        policy: that was built.
        model: the section it was built from.
    """
    if policy.adapters is None:
        return None
    return Backbone(policy.adapters, ModelSource.of(model).base)


def _load(model: ModelConfig, lora: Mapping[str, Any], *, tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    """The model, with a fresh adapter where `lora` asks for one."""
    loaded = load_model(model, tokenizer=tokenizer, seed=seed, trainable=not lora)
    if not lora:
        return loaded
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(loaded, build_lora(dict(lora), loaded))
