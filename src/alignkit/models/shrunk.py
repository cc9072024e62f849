"""A tiny model of the same architecture: fewer layers, heads and experts, and narrower ones; the same vocabulary."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from alignkit.errors import ModelError

_NUM_HEADS, _HEAD_SIZE, _NUM_LAYERS = 4, 16, 2
# What configurations call the sizes of one architecture or another, and the most that is left of each.
_AT_MOST = {"num_hidden_layers": _NUM_LAYERS, "num_attention_heads": _NUM_HEADS, "head_dim": _HEAD_SIZE}
_AT_MOST |= {"hidden_size": _NUM_HEADS * _HEAD_SIZE, "word_embed_proj_dim": _NUM_HEADS * _HEAD_SIZE}
_AT_MOST |= dict.fromkeys(["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"], 128)
_AT_MOST |= dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 32)
_AT_MOST |= dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4)
_AT_MOST |= dict.fromkeys(["num_experts_per_tok", "n_shared_experts", "n_group", "topk_group"], 2)
_AT_MOST |= dict.fromkeys(["kv_lora_rank", "q_lora_rank", "v_head_dim", "global_head_dim"], _HEAD_SIZE)
_AT_MOST |= dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim"], 8)
_AT_MOST |= dict.fromkeys(["rotary_dim", "hidden_size_per_layer_input"], _HEAD_SIZE)
# What state-space layers call their heads, the size of one, and how much wider than the model they are together.
_STATE_HEADS = (
    ("num_heads", "head_dim", "expand"),
    ("mamba_n_heads", "mamba_d_head", "mamba_expand"),
    ("n_mamba_heads", "mamba_headdim", "mamba_expand"),
)


def shrunk_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of a tiny model: token ids, kind of positions and pattern of layers as they were."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    heads, groups = _size(text, "num_attention_heads"), _size(text, "num_key_value_heads")
    for name, most in _AT_MOST.items():
        value = _size(text, name)
        if value is not None and value > most:
            with suppress(AttributeError):  # made of others
                setattr(text, name, most)
    if _size(text, "qk_rope_head_dim") is not None:
        text.head_dim = text.qk_rope_head_dim  # what the positions are made for
    if heads and groups:
        text.num_key_value_heads = max(1, text.num_attention_heads * groups // heads)
    if _size(text, "qk_head_dim") is not None:
        with suppress(AttributeError):
            text.qk_head_dim = text.qk_nope_head_dim + text.qk_rope_head_dim
    _fit_state_heads(text)
    if kinds := getattr(text, "layer_types", None):
        # as many layers as it takes to have one of each kind
        num = max(_NUM_LAYERS, *(list(kinds).index(kind) + 1 for kind in kinds))
        text.num_hidden_layers = num
        with suppress(AttributeError):
            text.layer_types = list(kinds)[:num]
    _shorten_factors(text)
    return small


def _fit_state_heads(text: Any) -> None:
    """Heads of state-space layers are as wide together as the layer, where it has no width of its own."""
    for number, size, wider in _STATE_HEADS:
        num, one, times = _size(text, number), _size(text, size), _size(text, wider)
        if num and one and times and not _size(text, "mamba_d_ssm"):
            width = text.hidden_size * times
            if width % one:
                setattr(text, size, width // num)
            else:
                setattr(text, number, width // one)


def _size(text: Any, name: str) -> int | None:
    """A size of a configuration; None where it has none, or each layer one of its own."""
    try:
        value = getattr(text, name, None)
    except Exception:  # what a configuration raises that is asked for a size of one layer
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _shorten_factors(text: Any) -> None:
    """Long RoPE has a factor for every pair of dimensions of a head."""
    rope = getattr(text, "rope_parameters", None) or {}
    for name in ("short_factor", "long_factor"):
        if isinstance(rope, dict) and isinstance(rope.get(name), list):
            size = _size(text, "head_dim") or text.hidden_size // text.num_attention_heads
            rope[name] = rope[name][: size // 2]


def shrunk_model(config: PreTrainedConfig, *, seed: int, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a tiny model with random float32 weights.

    Args:
        config: of the model that it stands for.
        seed: of the weights; the global random state is left as it was.
        trust_remote_code: as in transformers.

    Raises:
        ModelError: this architecture cannot be built so small.
    """
    attention = config._attn_implementation
    try:
        small = shrunk_config(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built: PreTrainedModel = AutoModelForCausalLM.from_config(
                small, trust_remote_code=trust_remote_code, attn_implementation=attention, dtype=torch.float32
            )
    except Exception as error:  # whatever the code of an architecture raises over sizes that nobody has tried
        raise ModelError(
            f"model.name: no tiny model can be built like this {config.model_type}: {' '.join(str(error).split())}"
        ) from error
    built.eval()
    return built
