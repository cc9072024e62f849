"""The user's job on tiny random models of the same architectures: two steps of a few rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from alignkit.choices import Dtype, HealthPolicy, Init, Quantization, Resume
from alignkit.config import ModelConfig, TrainingEngineConfig
from alignkit.jobs import PolicyJob, PpoJob, StageJob
from alignkit.json_files import read_object
from alignkit.models.load import load_tokenizer, read_adapter_config
from alignkit.models.lora import check_lora
from alignkit.models.reward import as_reward_model, reward_tokenizer
from alignkit.models.shrunk import shrunk_config, shrunk_model
from alignkit.models.skeleton import skeleton
from alignkit.models.source import ModelSource

NUM_STEPS = 2
MOST_ROWS = 256  # of the data, in the order of its files
_ROWS, _NEW_TOKENS = 2, 16  # in a batch; in a response


def tiny_job(job: StageJob, folder: Path) -> StageJob:
    """Return the job as it is tried, its models written below a folder.

    Template, data, LoRA, losses, optimizer and rewards that are functions stay as they are.

    Args:
        job: that the stage's own `check_job` has passed.
        folder: where to write.

    Raises:
        ModelError: this architecture cannot be built so small, or LoRA does not fit the real one.
    """
    if job.lora:
        check_lora(job.lora, skeleton(job.model))
    limit = min(job.data.limit or MOST_ROWS, MOST_ROWS)
    small = replace(
        job,
        resume=Resume.false,
        overwrite=False,
        early_stopping=None,
        model=_tiny_model(job.model, folder / "model", seed=job.seed),
        lora={key: [0] if key == "layers_to_transform" else value for key, value in job.lora.items()},
        data=replace(job.data, limit=limit),
        train=_few_steps(job),
    )
    if isinstance(small, PolicyJob):
        new_tokens = min(small.sampling.max_new_tokens, _NEW_TOKENS)
        sampling = replace(
            small.sampling, max_new_tokens=new_tokens, min_new_tokens=min(small.sampling.min_new_tokens, new_tokens)
        )
        small = replace(small, samples=min(small.samples, 1), sampling=sampling)
    if hasattr(small, "reference") and small.reference.name is not None:
        reference = _tiny_model(replace(job.model, name=small.reference.name), folder / "reference", seed=job.seed + 1)
        small.reference = replace(small.reference, name=reference.name)
    return _few_completions(small, folder) if isinstance(small, PpoJob) else small


def _few_steps(job: StageJob) -> dict[str, Any]:
    held_out = job.data.eval_path is not None or job.data.eval_fraction > 0
    evaluated = held_out and job.train.get("eval_strategy") != "no"
    changed: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": min(int(job.train.get("per_device_train_batch_size", 8)), _ROWS),
        "report_to": "none",
        "eval_strategy": "steps" if evaluated else "no",
        **({"eval_steps": 1, "eval_on_start": False} if evaluated else {}),
        "load_best_model_at_end": False,
        "save_total_limit": None,
    }
    if not isinstance(job, PpoJob):  # which counts in updates
        accumulated = min(int(job.train.get("gradient_accumulation_steps", 1)), 2)
        changed |= {"max_steps": NUM_STEPS, "gradient_accumulation_steps": accumulated}
    dropped = (
        "eval_on_start",
        "eval_steps",
        "eval_delay",
        "metric_for_best_model",
        "greater_is_better",
        "num_train_epochs",
    )
    return {**{key: value for key, value in job.train.items() if key not in dropped}, **changed}


def _few_completions(job: PpoJob, folder: Path) -> PpoJob:
    """Two updates, each of a minibatch or two of as few completions as divide into passes."""
    size, parts = job.train["per_device_train_batch_size"], min(job.ppo.num_mini_batches, 2)
    ppo = replace(
        job.ppo,
        num_updates=NUM_STEPS,
        num_prompts=size * parts,
        num_generations=min(job.ppo.num_generations, 4),
        num_mini_batches=parts,
        num_ppo_epochs=min(job.ppo.num_ppo_epochs, 2),
        generation_batch_size=min(job.ppo.generation_batch_size, 8),
        overlong={**job.ppo.overlong, "from": 0, "to": _NEW_TOKENS} if job.ppo.overlong else {},
        health=HealthPolicy.off,  # of a random model they say nothing
    )
    warmup = min(job.value.warmup_updates, NUM_STEPS - 1)
    rewards = [_tiny_reward(item, folder / f"reward{number}", job.seed) for number, item in enumerate(job.reward)]
    value = replace(job.value, warmup_updates=warmup, start=None)  # a value function of other weights would not fit
    engine = TrainingEngineConfig()  # no server has the tiny model
    return replace(job, ppo=ppo, value=value, reward=rewards, engine=engine)


def _tiny_model(model: ModelConfig, folder: Path, *, seed: int) -> ModelConfig:
    """Write a tiny model with the tokenizer of the real one, under an adapter where that is one."""
    source = ModelSource.of(model)
    bare, tokenizer = skeleton(model), load_tokenizer(model)
    built = shrunk_model(bare.config, seed=seed, trust_remote_code=model.trust_remote_code)
    embeddings: Any = built.get_input_embeddings()
    if len(tokenizer) > len(embeddings.weight):
        built.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    base = folder / "base" if source.is_adapter else folder
    built.save_pretrained(base)
    tokenizer.save_pretrained(folder)
    if source.is_adapter:
        tokenizer.save_pretrained(base)
        assert source.folder is not None
        config: Any = read_adapter_config(source.folder)
        config.inference_mode, config.base_model_name_or_path, config.revision = False, str(base), None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            get_peft_model(built, config).save_pretrained(str(folder))
    return replace(
        model,
        name=str(folder),
        init=Init.pretrained,
        config={},
        revision=None,
        dtype=Dtype.float32 if model.quantization is not Quantization.none else model.dtype,
        quantization=Quantization.none,
    )


def _tiny_reward(item: Any, folder: Path, seed: int) -> Any:
    """Write a tiny model in place of a classifier or of a reward run; a function stays."""
    if not isinstance(item, dict) or not (item.get("classifier") or item.get("model")):
        return item
    if item.get("classifier"):
        config = shrunk_config(AutoConfig.from_pretrained(item["classifier"]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(item["classifier"]).save_pretrained(folder)
        return {**item, "classifier": str(folder)}
    section = ModelConfig(item["model"])
    tokenizer, source = load_tokenizer(section), ModelSource.of(section)
    built = shrunk_model(_language_model_config(source), seed=seed)
    scored = as_reward_model(built, reward_tokenizer(tokenizer, end_id=-1), seed=seed)
    scored.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert source.folder is not None
    for name in ("score.json",):
        if (source.folder / name).is_file():
            (folder / name).write_text((source.folder / name).read_text(encoding="utf-8"), encoding="utf-8")
    return {**item, "model": str(folder)}


def _language_model_config(source: ModelSource) -> Any:
    base = source.base
    location = base.folder or base.config.name
    if base.folder is not None:
        read_object(base.folder / "config.json")
    return AutoConfig.from_pretrained(location)
