"""From `model.*` to a tokenizer and weights: a hub id, a folder, one of our run directories, or random ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alignkit.config import Dtype, Init, ModelConfig, Quantization
from alignkit.errors import ModelError, did_you_mean
from alignkit.models.tiny import byte_tokenizer, config_problems, random_model

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
CONVERT = "convert it at https://huggingface.co/spaces/safetensors/convert, or take a revision that has them"


def check_model(model: ModelConfig) -> None:
    """Everything that can be known to be wrong without reading weights; a hub id costs one request.

    Raises:
        ModelError: one line for each problem.
    """
    problems = _quantization_problems(model) + _attention_problems(model)
    if model.init is Init.RANDOM:
        problems += config_problems(model.config)
        if model.revision is not None:
            problems.append("model.revision: random weights have no revision, leave it out")
    else:
        if model.config:
            problems.append("model.config: only init=random builds from it; pretrained weights bring their own")
        problems += _source_problems(model)
    if problems:
        raise ModelError(*problems)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the weights; a random model reads bytes.

    A tokenizer without a pad token (the GPT-2 family) pads with its eos token: batches need an id to fill up with, the
    loss never sees it, and the vocabulary does not grow.

    Raises:
        ModelError: there is none, or it has neither a pad nor an eos token.
    """
    if model.init is Init.RANDOM:
        return byte_tokenizer()
    folder = local_folder(model.name)
    if folder and is_adapter(folder) and not (folder / "tokenizer_config.json").exists():
        return load_tokenizer(_base_of(folder, model))
    with _in_words(f"the tokenizer of {model.name}"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder or model.name, **_origin(model))
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model.name: the tokenizer of {model.name} has neither a pad nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: ModelConfig, *, tokenizer: PreTrainedTokenizerBase, seed: int, frozen: bool = False
) -> PreTrainedModel | PeftModel:
    """A causal language model in evaluation mode, on the CPU unless it is quantized.

    Args:
        model: the section `model`; `check_model` has passed it.
        tokenizer: what `load_tokenizer` returned; sizes a random model.
        seed: of random weights.
        frozen: the loaded weights stay as they are (LoRA goes on top, or nothing is trained). `dtype: auto` then takes
            `default_dtype()`. Weights that train load in float32: updates smaller than a bfloat16 step would be lost,
            and bfloat16 arithmetic is the trainer's autocast. An adapter's base is always frozen; the adapter trains
            (in float32) unless `frozen`.

    Returns:
        The model; a `PeftModel` where `model.name` is a folder with an adapter.

    Raises:
        ModelError: what only loading can tell: not a causal language model, weights that are damaged or missing.
    """
    transformers_logging.disable_progress_bar()
    if model.init is Init.RANDOM:
        built = random_model(
            model.config, tokenizer=tokenizer, seed=seed, attn_implementation=model.attn_implementation
        )
        return built.to(_dtype(model, frozen=frozen))  # drawn in float32, so that a seed means the same in any dtype
    folder = local_folder(model.name)
    if folder and is_adapter(folder):
        base = load_model(_base_of(folder, model), tokenizer=tokenizer, seed=seed, frozen=True)
        with _in_words(f"the adapter {model.name}"):
            return PeftModel.from_pretrained(base, str(folder), is_trainable=not frozen).eval()
    if model.quantization is not Quantization.NONE and not frozen:
        raise ModelError("model.quantization: quantized weights cannot be trained, only LoRA on top of them: lora=qlora")
    with _in_words(model.name):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            folder or model.name,
            **_origin(model),
            dtype=_dtype(model, frozen=frozen),
            attn_implementation=model.attn_implementation,
            quantization_config=_quantization(model),
            use_safetensors=True,  # a pickle can run code
            output_loading_info=True,
        )
    # transformers would fill the gaps with random numbers and a log line
    if missing := sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]):
        raise ModelError(
            f"model.name: {model.name} is not a whole causal language model: {len(missing)} weights are missing or have "
            f"another shape, such as {missing[0]}"
        )
    return loaded


def default_dtype() -> torch.dtype:
    """bfloat16 where this machine computes in it natively, else float32."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return torch.bfloat16 if native else torch.float32


def positions(config: PreTrainedConfig) -> int | None:
    """The longest sequence the model has positions for, in tokens; None where it sets no limit (ALiBi, recurrence)."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def local_folder(name: str) -> Path | None:
    """The folder that `model.name` means, or None where it can only be a hub id."""
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def _source_problems(model: ModelConfig) -> list[str]:
    folder = local_folder(model.name)
    if folder is None:
        return _hub_problems(model)
    problems = _adapter_problems(folder, model) if is_adapter(folder) else _weight_problems(folder)
    if model.revision is not None:
        problems.append(f"model.revision: {model.name} is a folder, only a hub model has revisions")
    return problems


def _weight_problems(folder: Path) -> list[str]:
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent for path in [*folder.glob("*/config.json"), *folder.glob(f"*/{ADAPTER_CONFIG}")])
        hint = f"; did you mean '{inside[0]}'?" if inside else ""
        return [f"model.name: {folder} holds no model, config.json is missing{hint}"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in wanted]
    else:
        files = sorted(folder.glob("model*.safetensors"))
    return _file_problems(folder, files)


def _file_problems(folder: Path, files: list[Path]) -> list[str]:
    if not files:
        if pickles := sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)):
            return [f"model.name: {folder} has its weights as pickles ({pickles[0]}), which can run code; {CONVERT}"]
        return [f"model.name: {folder} has no weights (*.safetensors)"]
    problems = []
    for file in files:
        try:
            with safe_open(file, framework="pt"):  # reads the header and compares it with the file's size
                pass
        except FileNotFoundError:
            problems.append(f"model.name: {file} is missing")
        except (SafetensorError, OSError) as error:
            problems.append(f"model.name: {file} is damaged or no safetensors file: {error}")
    return problems


def _adapter_problems(folder: Path, model: ModelConfig) -> list[str]:
    weights = [folder / "adapter_model.safetensors"]
    problems = _file_problems(folder, weights if weights[0].is_file() else [])
    base = _base_of(folder, model)
    if local_folder(base.name) is None and Path(base.name).is_absolute():
        problems.append(
            f"model.name: the base of the adapter {folder} is missing: {base.name}; put it back, or name its new place "
            f"as base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        )
        return problems
    return problems + [f"{problem} (the base of the adapter {folder})" for problem in _source_problems(base)]


def _base_of(folder: Path, model: ModelConfig) -> ModelConfig:
    """The model an adapter folder sits on: its own `base/` first, so that a run directory can be moved."""
    if (folder / "base" / "config.json").is_file():
        return dataclasses.replace(model, name=str(folder / "base"), revision=None)
    adapter = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return dataclasses.replace(model, name=adapter["base_model_name_or_path"], revision=adapter.get("revision"))


def _hub_problems(model: ModelConfig) -> list[str]:
    path = Path(model.name).expanduser()
    near = did_you_mean(path.name, (item.name for item in path.parent.glob("*") if item.is_dir()))
    if path.is_file():
        return [f"model.name: {path} is a file; name the folder it is in"]
    try:
        validate_repo_id(model.name)
    except HFValidationError:
        return [f"model.name: there is no folder {path}{near}"]
    try:
        files = {item.rfilename for item in model_info(model.name, revision=model.revision, timeout=10).siblings or ()}
    except GatedRepoError:
        return [f"model.name: {model.name} is gated: accept its terms at https://huggingface.co/{model.name}, then log in"]
    except RevisionNotFoundError:
        return [f"model.revision: {model.name} has no revision '{model.revision}'"]
    except RepositoryNotFoundError:
        return [f"model.name: '{model.name}' is neither a folder here nor a public model on the hub{near}"]
    except (HTTPError, OSError):
        if _cached(model):
            return []
        return [f"model.name: there is no folder '{model.name}', and the hub cannot be reached to look there{near}"]
    if ADAPTER_CONFIG in files:
        return [f"model.name: {model.name} is an adapter: download it (hf download) and name its folder"]
    if not any(name.endswith(".safetensors") for name in files):
        return [f"model.name: {model.name} has no safetensors weights; {CONVERT}"]
    return []


def _cached(model: ModelConfig) -> bool:
    return isinstance(try_to_load_from_cache(model.name, "config.json", revision=model.revision), str)


def _quantization_problems(model: ModelConfig) -> list[str]:
    if model.quantization is Quantization.NONE:
        return []
    problems = []
    if model.init is Init.RANDOM:
        problems.append("model.quantization: random weights are not quantized, they are small; leave it out")
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append("model.quantization: needs bitsandbytes: pip install 'alignkit[quantization]'")
    if not torch.cuda.is_available():
        problems.append("model.quantization: needs a GPU, and there is none here; take none")
    return problems


def _attention_problems(model: ModelConfig) -> list[str]:
    # a hub kernel ("org/name") is refused along with typing errors: it is a compiled binary from a stranger
    known = ["eager", *sorted(key for key in AttentionInterface().valid_keys() if "|" not in key)]
    chosen = model.attn_implementation
    if chosen is None or chosen in known:
        return []
    return [f"model.attn_implementation: unknown '{chosen}'{did_you_mean(chosen, known)} it can be {', '.join(known)}"]


def _origin(model: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if local_folder(model.name) is None:
        options["revision"] = model.revision or "main"
        try:
            model_info(model.name, revision=model.revision, timeout=10)
        except (HTTPError, OSError):
            # transformers would retry for most of a minute, file by file, before it looks into the cache
            options["local_files_only"] = _cached(model)
    return options


def _dtype(model: ModelConfig, *, frozen: bool) -> torch.dtype:
    if model.dtype is Dtype.AUTO:
        return default_dtype() if frozen else torch.float32
    return {Dtype.FLOAT32: torch.float32, Dtype.BFLOAT16: torch.bfloat16, Dtype.FLOAT16: torch.float16}[model.dtype]


def _quantization(model: ModelConfig) -> BitsAndBytesConfig | None:
    """NF4 with double quantization as in QLoRA (Dettmers et al. 2023, section 3), or LLM.int8()."""
    if model.quantization is Quantization.NF4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model.quantization is Quantization.INT8 else None


@contextmanager
def _in_words(what: str) -> Iterator[None]:
    """What transformers, PEFT and safetensors raise over a bad folder, download or missing extra, as one line."""
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"model.name: {what} cannot be loaded: {reason}") from error
