"""From the section `model` to a tokenizer and weights."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
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

from alignkit.choices import Dtype, Init, Quantization
from alignkit.config import ModelConfig
from alignkit.errors import AlignkitError, ConfigError, DamagedFile, ModelError, did_you_mean
from alignkit.long_rope import encode_each_row_alone
from alignkit.models.source import (
    TOKENIZER_FILES,
    ModelSource,
    config_folder,
    hub_options,
    source_problems,
    tokenizer_folder,
)
from alignkit.models.tiny import byte_tokenizer, config_problems, random_model

_ELSEWHERE = ContextVar("elsewhere", default=False)
_LONGEST_BY_DEFAULT = 2048  # tokens: a model with 128 k positions must not take their memory unasked


@contextmanager
def for_another_machine() -> Iterator[None]:
    """Let `check_model` pass what only this machine lacks, a GPU and bitsandbytes: the job will run elsewhere."""
    token = _ELSEWHERE.set(True)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


def check_model(model: ModelConfig, *, wants_reward: bool = False) -> None:
    """Refuse everything that can be known to be wrong without reading weights; a hub id costs one request.

    Args:
        model: the section.
        wants_reward: it must be a trained reward model, where else it must be a language model.

    Raises:
        ModelError: one line for each problem.
    """
    problems = _quantization_problems(model) + _attention_problems(model)
    if model.init is Init.random:
        problems += _random_problems(model)
        if model.revision is not None:
            problems.append("model.revision: random weights have no revision; leave it out")
    else:
        problems += source_problems(ModelSource.of(model), wants_reward=wants_reward)
        if model.config:
            problems.append("model.config: pretrained weights bring their own; only init=random builds from it")
    if problems:
        raise ModelError(*problems)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to the weights; a random model has that of the folder it names, or reads bytes.

    A tokenizer without a pad token (the GPT-2 family) pads with its eos token: batches need an id to fill up with, the
    loss never sees it, and the vocabulary does not grow. Without an eos token `load_template` pads with the template's.

    Raises:
        ModelError: it cannot be loaded.
    """
    folder = tokenizer_folder(model)
    if model.init is Init.random and folder is None:
        return byte_tokenizer()
    source = ModelSource.of(model)
    if source.is_adapter and not Path(source.location, "tokenizer_config.json").is_file():
        return load_tokenizer(source.base.config)
    with _errors_in_one_line(f"the tokenizer of {model.name}", Exception):  # tokenizers raises nothing narrower
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder or source.location,
            trust_remote_code=model.trust_remote_code,
            **({} if folder else hub_options(source)),
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: ModelConfig, *, tokenizer: PreTrainedTokenizerBase, seed: int, trainable: bool = True
) -> PreTrainedModel | PeftModel:
    """Load a causal language model in evaluation mode, on the CPU unless it is quantized.

    Args:
        model: the section `model`, which `check_model` has passed.
        tokenizer: what `load_tokenizer` returned; it gives a random model its vocabulary.
        seed: of random weights.
        trainable: these very weights will be trained. False for the base of a new LoRA, or when nothing is. With
            `dtype: auto`, weights that train are float32 (in bfloat16 small updates round to nothing; fast arithmetic
            is the trainer's autocast) and weights that do not are in `default_dtype()`. An adapter trains in float32
            on a base that never does.

    Returns:
        The model; a `PeftModel` where `model.name` is a folder with an adapter.

    Raises:
        ModelError: what only loading can tell: not a causal language model, or weights that do not fit it.
    """
    transformers_logging.disable_progress_bar()
    if model.init is Init.random:
        built = random_model(
            model.config,
            tokenizer=tokenizer,
            seed=seed,
            attn_implementation=model.attn_implementation,
            folder=config_folder(model),
        )
        torch.nn.Module.to(built, weights_dtype(model, trainable=trainable))
        return encode_each_row_alone(_without_router_logits(built))
    source = ModelSource.of(model)
    if source.is_adapter:
        base = load_model(source.base.config, tokenizer=tokenizer, seed=seed, trainable=False)
        with _errors_in_one_line(f"the adapter {model.name}"):
            return PeftModel.from_pretrained(base, str(source.folder), is_trainable=trainable).eval()
    if trainable and model.quantization is not Quantization.none:
        raise ModelError("model.quantization: quantized weights cannot train, LoRA on top of them can: lora=qlora")
    return load_weights(model, trainable=trainable)


def load_merged(
    model: ModelConfig, *, tokenizer: PreTrainedTokenizerBase, seed: int, trainable: bool
) -> PreTrainedModel:
    """Load as `load_model` does, and merge an adapter into its base: in float32, then as `dtype` says.

    A merged model exists nowhere else: its `name_or_path` is empty, so that what is trained on it saves it too.
    """
    if not ModelSource.of(model).is_adapter:
        loaded = load_model(model, tokenizer=tokenizer, seed=seed, trainable=trainable)
        assert isinstance(loaded, PreTrainedModel)
        return loaded
    exact = dataclasses.replace(model, dtype=Dtype.float32)
    merged = cast("Any", load_model(exact, tokenizer=tokenizer, seed=seed, trainable=False)).merge_and_unload()
    merged.name_or_path = ""
    torch.nn.Module.to(merged, weights_dtype(model, trainable=trainable))
    return cast("PreTrainedModel", merged)


def merge_problems(model: ModelConfig, setting: str = "model.name") -> list[str]:
    """Refuse to merge an adapter into weights of 4 or 8 bits, which would round it; an empty list where none is."""
    if model.quantization is Quantization.none or not ModelSource.of(model).is_adapter:
        return []
    return [
        f"model.quantization: {setting} is an adapter, and merged into quantized weights it would be rounded to their "
        "few bits: leave model.quantization out, or name what alignkit merge makes of it"
    ]


def default_dtype() -> torch.dtype:
    """Return bfloat16 where this machine computes in it natively, else float32."""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features = torch.cpu.get_capabilities()
        native = any(features.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if native else torch.float32


def computing_device() -> torch.device:
    """Return the accelerator, or the CPU where there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def num_positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens the model has positions for; None where it sets no limit (such as ALiBi)."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def longest_row(max_length: int | None, config: PreTrainedConfig) -> int:
    """Return the most tokens in a row: `data.max_length`, or what the model has positions for, within reason.

    Raises:
        ConfigError: more was asked for than the model has.
    """
    longest = num_positions(config)
    if max_length is not None and longest is not None and max_length > longest:
        raise ConfigError(f"data.max_length is {max_length}, and the model has {longest} positions")
    return max_length or min(longest or _LONGEST_BY_DEFAULT, _LONGEST_BY_DEFAULT)


def load_weights(
    model: ModelConfig, *, trainable: bool, auto_class: type[Any] = AutoModelForCausalLM
) -> PreTrainedModel:
    """Load full weights from a folder or the hub; arguments and errors as in `load_model`.

    Args:
        model: names full weights, not an adapter.
        trainable: as in `load_model`.
        auto_class: of transformers, for what the weights are.
    """
    source = ModelSource.of(model)
    with _errors_in_one_line(model.name):
        result = auto_class.from_pretrained(
            source.location,
            dtype=weights_dtype(model, trainable=trainable),
            attn_implementation=model.attn_implementation,
            quantization_config=_quantization(model.quantization),
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,  # a pickle can run code
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            **hub_options(source),
        )
    loaded, report = cast("tuple[PreTrainedModel, dict[str, Any]]", result)
    kind = "causal language model" if auto_class is AutoModelForCausalLM else "reward model"
    # transformers fills the gaps with random numbers and says so in a log line
    if gaps := sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]):
        raise ModelError(
            f"model.name: {model.name} is no whole {kind}: {len(gaps)} weights are missing or of another shape, such "
            f"as {gaps[0]}"
        )
    return encode_each_row_alone(_without_router_logits(loaded))


def _without_router_logits(model: PreTrainedModel) -> PreTrainedModel:
    """Leave it to trainers to ask a mixture for its router's loss: a batch with a cache cannot make it."""
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        config.output_router_logits = False
    return model


def _random_problems(model: ModelConfig) -> list[str]:
    """What is wrong with the architecture of a random model, and with the folder whose tokenizer it takes."""
    folder = tokenizer_folder(model)
    if folder is None:
        return config_problems(model.config)
    if any(path.suffix in _WEIGHTS for path in folder.iterdir()):
        return [f"model.init=random would ignore the weights in model.name={model.name}: model=run loads them"]
    if not any(path.name.startswith(TOKENIZER_FILES) for path in folder.iterdir()):
        return [f"model.name: {folder} is a folder without a tokenizer, which a random model would take from it"]
    try:
        return config_problems(model.config, config_folder(model))
    except DamagedFile as error:
        return [f"model.name: {error}"]


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # the packages they need


def _quantization_problems(model: ModelConfig) -> list[str]:
    if model.quantization is Quantization.none:
        return []
    problems = []
    if model.init is Init.random:
        problems.append("model.quantization: random weights cannot be quantized; leave it out")
    if _ELSEWHERE.get():
        return problems
    if importlib.util.find_spec("bitsandbytes") is None:
        problems.append("model.quantization: bitsandbytes is not installed: pip install 'alignkit[quantization]'")
    if not torch.cuda.is_available():
        problems.append("model.quantization: needs a GPU, and there is none here; leave it out")
    return problems


def _attention_problems(model: ModelConfig) -> list[str]:
    # kernels from the hub ("org/name") are refused like any other unknown word: they are binaries from a stranger
    known = ["eager", *sorted(name for name in AttentionInterface().valid_keys() if "|" not in name)]
    chosen = model.attn_implementation
    if chosen in _FLASH and importlib.util.find_spec(_FLASH[chosen]) is None:
        return [f"model.attn_implementation={chosen}: {_FLASH[chosen]} is not installed; take sdpa, or leave it out"]
    if chosen is None or chosen in known:
        return []
    hint = did_you_mean(chosen, known) or f"; it can be {', '.join(known)}"
    return [f"model.attn_implementation: unknown '{chosen}'{hint}"]


def weights_dtype(model: ModelConfig, *, trainable: bool) -> torch.dtype:
    """Return the dtype of the weights that `load_model` loads; arguments as there."""
    if model.dtype is Dtype.auto:
        return torch.float32 if trainable else default_dtype()
    return {Dtype.float32: torch.float32, Dtype.bfloat16: torch.bfloat16, Dtype.float16: torch.float16}[model.dtype]


def _quantization(chosen: Quantization) -> BitsAndBytesConfig | None:
    """NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3) or LLM.int8() (Dettmers et al. 2022)."""
    if chosen is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True)
    if chosen is Quantization.nf4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return None


def read_adapter_config(folder: Path) -> PeftConfig:
    """Read the configuration of an adapter.

    Raises:
        ModelError: PEFT cannot make anything of it.
    """
    with _errors_in_one_line(f"the adapter {folder}"):
        return PeftConfig.from_pretrained(str(folder))


# What transformers, PEFT and safetensors raise over a bad folder, a download, a missing extra, JSON of a wrong shape.
_OF_BAD_FILES: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError)
_OF_BAD_FILES += (TypeError, LookupError, AttributeError, ArithmeticError)


@contextmanager
def _errors_in_one_line(what: str, *more: type[Exception]) -> Iterator[None]:
    """What upstream raises over files that it cannot use, as one line."""
    try:
        yield
    except AlignkitError:
        raise
    except (*_OF_BAD_FILES, *more) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"model.name: {what} cannot be loaded: {reason}") from error
