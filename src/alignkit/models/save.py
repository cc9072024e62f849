"""A trained model as a folder that alignkit, transformers and PEFT can load, from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# transformers refuses to save these beside greedy decoding, where they mean nothing
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    out_dir: Path,
    *,
    jinja: str,
    stop_ids: Sequence[int] | None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write weights (an adapter alone where there is one), tokenizer, chat template and generation config.

    An adapter names its base by absolute path or hub id and commit. A base with random weights is found nowhere else,
    so it is saved in `out_dir/base`, where `alignkit.models.load` looks first: such a run can be moved.

    Args:
        model: not wrapped by DDP, FSDP or DeepSpeed.
        tokenizer: its chat template becomes `jinja`.
        out_dir: made if it is not there.
        jinja: the chat template that was trained with.
        stop_ids: the tokens that ended trained turns; they join the model's own. None for a reward model,
            which generates nothing.
        state_dict: the gathered weights where `model` holds only a shard.
    """
    generation = None if stop_ids is None else _generation_config(model, tokenizer, stop_ids)
    if isinstance(model, PeftModel):
        if not model.get_base_model().name_or_path:
            below = _base_weights(model, model.state_dict() if state_dict is None else state_dict)
            _save_full(model.get_base_model(), tokenizer, out_dir / "base", jinja, generation, below)
        _name_base(model, out_dir)
        # the vocabulary never grows, and "auto" would ask the hub whether it did
        model.save_pretrained(str(out_dir), state_dict=state_dict, save_embedding_layers=False)
        (out_dir / "README.md").unlink()  # PEFT's model card, a form nobody filled in
        if generation is not None:
            generation.save_pretrained(out_dir)
        _save_tokenizer(tokenizer, out_dir, jinja)
    else:
        _save_full(model, tokenizer, out_dir, jinja, generation, state_dict)
    for weights in [*out_dir.glob("*.safetensors"), *out_dir.glob("base/*.safetensors")]:
        weights.chmod(0o644)  # written 0600, unlike the files beside them


def _save_full(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out_dir: Path,
    jinja: str,
    generation: GenerationConfig | None,
    state_dict: dict[str, torch.Tensor] | None,
) -> None:
    if generation is not None:
        model.generation_config = generation
    if state_dict is not None:  # gathered copies of tied weights share no memory, by which transformers would know them
        state_dict = {name: weight for name, weight in state_dict.items() if name not in model.all_tied_weights_keys}
    model.save_pretrained(out_dir, state_dict=state_dict)
    _save_tokenizer(tokenizer, out_dir, jinja)


def _base_weights(model: PeftModel, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights below the adapter, by the names they have without one."""
    kept = (".base_layer.", ".original_module.")
    added = (model.base_model.prefix, ".modules_to_save.", ".token_adapter.")
    named: dict[str, torch.Tensor] = {}
    for name, weight in state_dict.items():
        bare = name.removeprefix("base_model.model.").replace(".token_adapter.base_layer.", ".")
        for part in kept:
            bare = bare.replace(part, ".")
        if not any(part in bare for part in added):
            named[bare] = weight
    return named


def _name_base(model: PeftModel, out_dir: Path) -> None:
    base, adapter = model.get_base_model(), model.active_peft_config
    folder = Path(base.name_or_path) if base.name_or_path else out_dir / "base"
    if folder.is_dir():
        adapter.base_model_name_or_path = str(folder.resolve())  # a relative one would only load from this directory
    else:
        adapter.base_model_name_or_path = base.name_or_path
        adapter.revision = getattr(base.config, "_commit_hash", None)


def _generation_config(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]
) -> GenerationConfig:
    own: dict[str, Any] = model.generation_config.to_diff_dict()
    # marked as derived, older transformers derive it from config.json again at load and lose the stop ids set here
    own.pop("_from_model_config", None)
    if not own.get("do_sample"):
        own = {name: value for name, value in own.items() if name not in _SAMPLING_ONLY}
    stop = own.get("eos_token_id")
    known = [] if stop is None else [stop] if isinstance(stop, int) else stop
    own |= {"eos_token_id": list(dict.fromkeys([*known, *stop_ids])), "pad_token_id": tokenizer.pad_token_id}
    return GenerationConfig(**own)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, out_dir: Path, jinja: str) -> None:
    tokenizer.chat_template = jinja
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # the last batch's padding and truncation would be written along, and applied by whoever reads the file
        backend.no_padding()
        backend.no_truncation()
    for how in ("local_files_only", "is_local"):  # it was loaded: no part of what it is, and repeated otherwise offline
        tokenizer.init_kwargs.pop(how, None)
    tokenizer.save_pretrained(out_dir)
