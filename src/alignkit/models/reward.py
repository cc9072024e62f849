"""A reward model: the backbone of a causal model under a head with one output, read at a response's last token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alignkit.config import ModelConfig
from alignkit.errors import ModelError
from alignkit.json_files import get, read_object
from alignkit.models.load import load_weights
from alignkit.models.source import ADAPTER_WEIGHTS, ModelSource

SCORES = "score.json"
HEADS = (".score.weight", ".classifier.weight")  # what architectures call the score head, and an adapter saves
_PAD = "<|pad|>"
_QUANTIZED = ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method", "hf_quantizer")


class ScoreHead(nn.Linear):
    """One output without a bias, in float32 whatever the backbone computes in: bfloat16 would tie scores 1 % apart."""

    def __init__(self, hidden_size: int, *, device: torch.device | None = None) -> None:
        super().__init__(hidden_size, 1, bias=False, device=device, dtype=torch.float32)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), self.weight.float())


def reward_tokenizer(tokenizer: PreTrainedTokenizerBase, *, end_id: int) -> PreTrainedTokenizerBase:
    """Give the tokenizer a pad token that is not the end of a response.

    transformers reads the score at the last token that is no padding. Where both are one token (GPT-2), that would be
    the one before the end: such a tokenizer gets a pad token of its own, the one id that the vocabulary grows by.
    """
    if tokenizer.pad_token_id in (None, end_id, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": _PAD})
    return tokenizer


def reward_problem(config: Any) -> str | None:
    """Say why no reward model can be made of this architecture; None where one can."""
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    return f"model.name: transformers has no sequence classification for a {config.model_type}"


def as_reward_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> PreTrainedModel:
    """Put a new score head on the same backbone, not a copy, in place of the language model's.

    Args:
        model: causal, without an adapter; not to be used any more.
        tokenizer: from `reward_tokenizer`.
        seed: of the head's first weights, normal with the model's own `initializer_range`.
    """
    _fit_vocabulary(model, tokenizer)
    built = _on_backbone(model, model.config)
    for name in _QUANTIZED:
        if hasattr(model, name):
            setattr(built, name, getattr(model, name))
    built.name_or_path = model.name_or_path
    built.config.num_labels = 1
    built.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    head = _put_head(built)
    spread = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    with torch.no_grad():
        drawn = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
        head.weight.copy_(drawn * spread)
    built.eval()
    return built


def head_beside(model: PreTrainedModel, weight: Tensor, *, device: torch.device) -> PreTrainedModel:
    """Put a trained score head on the backbone of a language model that goes on being one.

    Args:
        model: the language model, adapters inside it or not; nothing in it is changed.
        weight: of the head, [1, H].
        device: of the head.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = 0  # upstream asks for one, to find a score that nobody looks at
    built = _on_backbone(model, config)
    with torch.no_grad():
        _put_head(built).requires_grad_(False).to(device).weight.copy_(weight)
    return built


def score_head(model: Any) -> nn.Module:
    """Find the module that makes scores of hidden states, [B, L, H] to [B, L, 1], adapters or not."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head: nn.Module = getattr(base, _head_name(base))
    return head


def load_reward(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | PeftModel:
    """Load a trained reward model in evaluation mode, on the CPU.

    Args:
        model: the section whose `name` is a folder that `alignkit reward` wrote (`check_model` has passed).
        tokenizer: the run's own, as `load_tokenizer` gives it.

    Raises:
        ModelError: the folder holds no reward model, or one with more outputs than one.
    """
    transformers_logging.disable_progress_bar()
    source = ModelSource.of(model)
    if not source.is_reward:
        raise ModelError(f"{model.name} is no reward model: `alignkit reward` makes one")
    return _load_adapter(source, tokenizer) if source.is_adapter else _load_classifier(model, tokenizer)


def adapter_and_head(folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Read a reward run that is an adapter: the adapter's weights as PEFT saves them, and the head's, [1, H]."""
    weights = load_file(folder / ADAPTER_WEIGHTS)
    (head,) = [key for key in weights if key.endswith(HEADS)]
    return weights, weights.pop(head)


def score_statistics(folder: Path) -> tuple[float, float]:
    """Read the mean and standard deviation of a reward run's held-out scores; 0 and 1 where it had none."""
    path = folder / SCORES
    kept = read_object(path) if path.is_file() else {"mean": 0.0, "std": 1.0}
    return float(get(kept, "mean", float, path)), float(get(kept, "std", float, path))


@torch.no_grad()
def scores_of(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Score token rows, each at its last token, batched by length.

    Args:
        model: from `load_reward` or trained.
        rows: prompt and response of each, with the end token.
        pad_id: fills the right; never looked at.
        batch_size: rows in one pass.
        on_progress: called with the number of rows scored so far.
    """
    scores = [0.0] * len(rows)
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        width = len(rows[batch[0]])
        ids = torch.full((len(batch), width), pad_id)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(batch):
            ids[line, : len(rows[i])] = torch.as_tensor(rows[i])
            mask[line, : len(rows[i])] = 1
        every_NL = every_score(model, {"input_ids": ids.to(device), "attention_mask": mask.to(device)})
        last = mask.sum(1).to(device) - 1
        for i, score in zip(batch, every_NL.gather(1, last[:, None])[:, 0].tolist(), strict=True):
            scores[i] = score
        if on_progress is not None:
            on_progress(at + len(batch))
    return scores


def every_score(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Compute the score that every position would have if the row ended there, [N, L]."""
    caught: list[Tensor] = []
    handle = score_head(_unwrapped(model)).register_forward_hook(lambda _, args, output: caught.append(output[..., 0]))
    try:
        model(**{**inputs, "use_cache": False})
    finally:
        handle.remove()
    return caught[0]


def _unwrapped(model: Any) -> Any:
    return model.module if hasattr(model, "module") and not isinstance(model, PreTrainedModel | PeftModel) else model


def _head_name(model: nn.Module) -> str:
    names = [name for name, child in model.named_children() if name in ("score", "classifier")]
    assert names, f"{type(model).__name__} has no head"
    return names[0]


def _on_backbone(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A sequence classifier whose backbone is the one of `model`, and whose head is still to be put."""
    with torch.device("meta"):
        built: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    setattr(built, built.base_model_prefix, getattr(model, model.base_model_prefix))
    built.config = config
    return built


def _put_head(model: PreTrainedModel) -> ScoreHead:
    embeddings: Any = model.get_input_embeddings()
    head = ScoreHead(model.config.get_text_config().hidden_size, device=embeddings.weight.device)
    setattr(model, _head_name(model), head)
    return head


def _fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Room for a pad token that was added; its weights are never looked at."""
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) > len(embeddings.weight):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def _load_adapter(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> PeftModel:
    base = source.base
    if base.is_reward:
        classifier = _load_classifier(base.config, tokenizer)
    else:
        classifier = as_reward_model(load_weights(base.config, trainable=False), tokenizer, seed=0)
    adapted = PeftModel.from_pretrained(classifier, str(source.folder))
    adapted.eval()
    return adapted


def _load_classifier(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    loaded = load_weights(model, trainable=False, auto_class=AutoModelForSequenceClassification)
    if loaded.config.num_labels != 1:
        raise ModelError(f"{model.name} has {loaded.config.num_labels} outputs; a reward model has one")
    _fit_vocabulary(loaded, tokenizer)
    trained = getattr(loaded, _head_name(loaded)).weight.detach().float()
    with torch.no_grad():
        _put_head(loaded).weight.copy_(trained)
    loaded.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    loaded.eval()
    return loaded
