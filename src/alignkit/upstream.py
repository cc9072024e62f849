"""The only door to the argument classes of TRL, PEFT and transformers.

`train` and `lora` in a job are keyword arguments of upstream's own classes: every option is reachable without a line
of ours, and every name and plain type is checked. The names are read from upstream's source files instead of by
import, because importing `trl.SFTConfig` takes seconds and a typo should be answered at once; `tests/test_upstream.py`
holds what is read here against the imported classes.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, as_yaml, did_you_mean

_TRAINING_ARGUMENTS = ("transformers", "training_args.py", "TrainingArguments")


@dataclass(frozen=True)
class ArgumentClass:
    """Where an upstream dataclass lives.

    Attributes:
        module: import from here.
        name: the class.
        sources: (package, file, class) for each class of its inheritance that has fields, bases first.
    """

    module: str
    name: str
    sources: tuple[tuple[str, str, str], ...]


def _of_trl(name: str, file: str) -> ArgumentClass:
    base = ("trl", "trainer/base_config.py", "_BaseConfig")
    return ArgumentClass("trl", name, (_TRAINING_ARGUMENTS, base, ("trl", f"trainer/{file}", name)))


SFT_CONFIG = _of_trl("SFTConfig", "sft_config.py")
REWARD_CONFIG = _of_trl("RewardConfig", "reward_config.py")
DPO_CONFIG = _of_trl("DPOConfig", "dpo_config.py")
TRAINING_ARGUMENTS = ArgumentClass("transformers", "TrainingArguments", (_TRAINING_ARGUMENTS,))
LORA_CONFIG = ArgumentClass(
    "peft",
    "LoraConfig",
    (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
)

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "fp16_backend": "fp16",
    "group_by_length": "data.batching=grouped",
    "lora_r": "lora.r",
    "max_seq_length": "data.max_length",
    "no_cuda": "use_cpu",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "overwrite_output_dir": "overwrite=true, outside train",
    "warmup_ratio": "warmup_steps, where a number below 1 is a fraction of the steps",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rank": "r",
}

_OURS = "alignkit hands the trainer encoded rows"
_HUB = ("hub_model_id", "hub_strategy", "hub_token", "hub_always_push", "hub_revision")
_PLAIN_LOSS = "the loss is the plain likelihood of the response"


def _owned(stage: str, **more: str) -> dict[str, str]:
    """What alignkit sets itself in every trainer's arguments, and `more` in this stage's, each with what to use."""
    return {
        "output_dir": f"the run directory is runs/{stage}/<name>; move it with hydra.run.dir",
        "seed": "use seed, outside train",
        "data_seed": "use seed, outside train",
        "max_length": "use data.max_length",
        "train_sampling_strategy": "use data.batching and data.shuffle",
        "length_column_name": "use data.batching",
        "dataset_num_proc": "use data.num_proc",
        "model_init_kwargs": "use the model section",
        "trust_remote_code": "use model.trust_remote_code",
        "resume_from_checkpoint": "use resume=true",
        "remove_unused_columns": _OURS,
        "label_names": _OURS,
        "pad_token": "padding is masked by position, whatever the pad token",
        "logging_nan_inf_filter": "a loss that is not finite stops the run",
        "enable_jit_checkpoint": "SIGTERM always saves a checkpoint",
        "disable_tqdm": "the progress bar is alignkit's own",
        "auto_find_batch_size": "it would change the global batch; set per_device_train_batch_size and "
        "gradient_accumulation_steps",
        "push_to_hub": "upload the run directory yourself when you have looked at it",
        **dict.fromkeys(
            _HUB, "nothing is pushed to a hub; upload the run directory yourself when you have looked at it"
        ),
        "use_liger_kernel": "the loss already skips every position it does not need",
        "liger_kernel_config": "the loss already skips every position it does not need",
        "include_for_metrics": "evaluation reports its own figures",
        "batch_eval_metrics": "evaluation reports its own figures",
        "do_train": f"alignkit {stage} always trains",
        "do_eval": "held-out rows are evaluated whenever there are some: data.eval_path or data.eval_fraction",
        "do_predict": "use alignkit generate",
        "prediction_loss_only": "evaluation reports its own figures",
        **more,
    }


_TEMPLATE = {"chat_template_path": "use template.file", "eos_token": "the end token is the template's"}
_CUT = {"truncation_mode": "use data.overlength", "padding_free": "use data.batching"}
SFT_OWNED = _owned(
    "sft",
    **_TEMPLATE,
    **_CUT,
    packing="use data.batching",
    packing_strategy="use data.batching",
    eval_packing="use data.batching",
    shuffle_dataset="use data.shuffle",
    completion_only_loss="use data.train_on",
    assistant_only_loss="use data.train_on",
    dataset_text_field="use data.columns",
    dataset_kwargs=_OURS,
    label_smoothing_factor=_PLAIN_LOSS,
    loss_type=_PLAIN_LOSS,
)
_PAIRS = {
    "pad_to_multiple_of": "a batch is padded to its longest pair",
    "label_smoothing_factor": "the loss compares two responses, it has no labels to smooth",
}
REWARD_OWNED = _owned("reward", **_TEMPLATE, **_PAIRS)
DPO_OWNED = _owned(
    "dpo",
    **_CUT,
    **_PAIRS,
    precompute_ref_log_probs="use reference.keep",
    precompute_ref_batch_size="use train.per_device_eval_batch_size",
    sync_ref_model="the reference stays what it was at the start",
    ref_model_mixup_alpha="the reference stays what it was at the start",
    ref_model_sync_steps="the reference stays what it was at the start",
)
_MINIBATCH = "a minibatch is ppo.num_prompts × ppo.num_generations / ppo.num_mini_batches completions"
_GROUPED = "prompts are grouped by length as they are answered"
_ONLY_TRL = ("max_length", "dataset_num_proc", "model_init_kwargs", "trust_remote_code", "pad_token")
PPO_OWNED = {
    **{key: way_out for key, way_out in _owned("ppo").items() if key not in _ONLY_TRL},
    "num_train_epochs": "use ppo.num_updates",
    "max_steps": "use ppo.num_updates",
    "gradient_accumulation_steps": f"{_MINIBATCH}, taken train.per_device_train_batch_size at a time",
    "per_device_eval_batch_size": "use ppo.generation_batch_size",
    "auto_find_batch_size": f"{_MINIBATCH}; set per_device_train_batch_size",
    "train_sampling_strategy": f"use data.shuffle; {_GROUPED}",
    "length_column_name": _GROUPED,
    "label_smoothing_factor": "PPO has no labels",
    "deepspeed": "PPO is sharded by FSDP alone: take train.fsdp=true",
    "torch_compile": "every rollout has other lengths, and each would be compiled again",
    "neftune_noise_alpha": "noise in the embeddings would make rollouts differ from the policy that is trained",
}
_FROM_DATA = "it starts an adapter from a pass over data, which alignkit does not make; pissa starts from the weights"
_MEGATRON = "the models are those of transformers, not of Megatron"
_PENALTY = "its penalty is no part of the loss here; leave it out"
LORA_OWNED = {
    "task_type": "the stage sets it",
    "peft_type": "the section is LoRA",
    "auto_mapping": "the stage sets it",
    "base_model_name_or_path": "use model.name",
    "revision": "use model.revision",
    "inference_mode": "the stage sets it",
    "peft_version": "PEFT fills it in",
    "megatron_config": _MEGATRON,
    "megatron_core": _MEGATRON,
    "eva_config": _FROM_DATA,
    "corda_config": _FROM_DATA,
    "lora_ga_config": _FROM_DATA,
    "loftq_config": "it quantizes the base in its own way; use model.quantization",
    "use_qalora": "it is for weights in GPTQ; use model.quantization",
    "qalora_group_size": "it is for weights in GPTQ; use model.quantization",
    "kasa_config": _PENALTY,
    "monteclora_config": _PENALTY,
    "arrow_config": "it chooses among adapters that are trained already, and trains none",
    "alora_invocation_tokens": "of several rows in a packed batch it would adapt the last one only; leave it out",
    "layer_replication": "a model with more layers is another base: build that one first, and name it in model.name",
    "runtime_config": "it only moves weights around while DoRA starts; leave it out",
}

OPEN_SECTIONS: dict[str, dict[str, tuple[ArgumentClass, dict[str, str]]]] = {
    "sft": {"train": (SFT_CONFIG, SFT_OWNED), "lora": (LORA_CONFIG, LORA_OWNED)},
    "reward": {"train": (REWARD_CONFIG, REWARD_OWNED), "lora": (LORA_CONFIG, LORA_OWNED)},
    "dpo": {"train": (DPO_CONFIG, DPO_OWNED), "lora": (LORA_CONFIG, LORA_OWNED)},
    "ppo": {"train": (TRAINING_ARGUMENTS, PPO_OWNED), "lora": (LORA_CONFIG, LORA_OWNED)},
}

# Upstream accepts nonsense here (num_train_epochs=-1) and fails late or never.
_AT_LEAST_ONE = {
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "r",
    "lora_alpha",
}
_POSITIVE = {
    "beta",
    "num_train_epochs",
    "learning_rate",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
}
_NOT_NEGATIVE = {"warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers"}


@cache
def argument_types(cls: ArgumentClass) -> dict[str, str]:
    """Field names of an upstream class with their annotations as source text."""
    found: dict[str, str] = {}
    for package, file, name in cls.sources:
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"{package} is a dependency"
        assert spec.submodule_search_locations
        path = Path(spec.submodule_search_locations[0]) / file
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (node,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                found[item.target.id] = ast.unparse(item.annotation)
    return {key: text for key, text in found.items() if not text.startswith("ClassVar")}


def problems(
    values: Mapping[str, Any], cls: ArgumentClass, section: str, owned: Mapping[str, str], *, allow: Iterable[str] = ()
) -> list[str]:
    """One line for each key that upstream does not have, that alignkit sets itself, or whose value cannot be right.

    Args:
        values: the section, as plain Python values.
        cls: the class whose keyword arguments they are.
        section: the setting's name, for the messages.
        owned: keys that alignkit sets itself, each with what to use instead.
        allow: keys of `owned` to let through.
    """
    known, lines = argument_types(cls), []
    for key, value in values.items():
        if key in owned and key not in allow:
            lines.append(f"{section}.{key} cannot be set here: {owned[key]}")
        elif key in known:
            lines += [f"{section}.{key}{line}" for line in _wrong_value(key, value, known[key])]
        elif key in RENAMED:
            lines.append(f"unknown key '{key}' in '{section}': use {RENAMED[key]}")
        else:
            hint = did_you_mean(str(key), known.keys() - owned.keys())
            lines.append(f"unknown key '{key}' in '{section}': it is no argument of {cls.module}.{cls.name}{hint}")
    return lines


def idle_layers(lora: Mapping[str, Any]) -> list[str]:
    """List what chooses layers and has no effect beside the rest of the section `lora`, one line each."""
    targets, chosen = lora.get("target_modules"), lora.get("layers_to_transform")
    if chosen is None and lora.get("layers_pattern"):
        return ["lora.layers_pattern has no effect without lora.layers_to_transform: give both or none"]
    choosing = [key for key in ("layers_to_transform", "layers_pattern") if lora.get(key) is not None]
    if not isinstance(targets, str) or targets == "attention":  # alignkit makes a list of these
        return []
    return [
        f"lora.{key} has no effect beside lora.target_modules={targets}: name the modules in a list, or take attention"
        for key in choosing
    ]


def build(cls: ArgumentClass, values: Mapping[str, Any], section: str, **ours: Any) -> Any:
    """Upstream's object from checked values and the arguments that are ours to set.

    Raises:
        ConfigError: upstream refuses a value or a combination of them.
    """
    factory = getattr(importlib.import_module(cls.module), cls.name)
    try:
        return factory(**{**values, **ours})
    except (ValueError, TypeError, ImportError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{section}: {cls.module}.{cls.name} refuses these settings: {_first_line(error)}") from error


def _wrong_value(key: str, value: Any, annotation: str) -> list[str]:
    """What is wrong with a value, as the end of a line that starts with its setting; at most one line."""
    if isinstance(value, str) and value.startswith("${"):
        return []
    names = {node.id for node in ast.walk(ast.parse(annotation)) if isinstance(node, ast.Name)}
    names |= {"bool"} if key == "fsdp" else set()  # upstream says str, of an older form of it, and asks for true
    plain: dict[str, type | tuple[type, ...]] = {
        "bool": bool,
        "int": int,
        "float": (int, float),
        "str": str,
        "dict": dict,
        "list": list,
    }
    if value is None:
        return [] if "None" in annotation or "Optional" in names else [" is null: give it a value or leave it out"]
    if value is False and "bool" not in names and "str" in names:
        return [" is false: YAML reads a bare no as false; write 'no' in quotes"]
    if names <= {*plain, "Optional", "Union", "Any"} and "Any" not in names - {"Optional"}:
        fits = any(
            isinstance(value, plain[name]) and (name == "bool" or not isinstance(value, bool))
            for name in names & plain.keys()
        )
        if not fits:
            return [f" is {as_yaml(value)}, which is no {' or '.join(sorted(names & plain.keys()))}"]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if key in _AT_LEAST_ONE and value < 1:
            return [f" is {value}: it must be at least 1"]
        if key in _POSITIVE and value <= 0:
            return [f" is {value}: it must be above 0"]
        if key in _NOT_NEGATIVE and value < 0:
            return [f" is {value}: it must not be negative"]
        if key == "max_steps" and value < 1 and value != -1:
            return [f" is {value}: it must be at least 1"]
        if key == "label_smoothing" and not 0 <= value < 0.5:
            return [f" is {value}: it must be at least 0 and below 0.5"]
        if key == "lora_dropout" and not 0 <= value < 1:
            return [f" is {value}: it must be at least 0 and below 1"]
    return []


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
