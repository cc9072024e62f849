"""What is wrong with a PPO job before anything is read through or loaded."""

from __future__ import annotations

import math
import os

from alignkit.data.sets.prompts import check_prompts
from alignkit.errors import AlignkitError, ConfigError, as_yaml
from alignkit.estimators import estimator_of, needs_reference
from alignkit.jobs import PpoJob
from alignkit.models.reference import reference_problems
from alignkit.rewards.load import check_rewards
from alignkit.rewards.source import parse_rewards
from alignkit.sampling.settings import check_sampling, draws
from alignkit.stages.ppo.advantage import check_advantage
from alignkit.stages.ppo.check_engine import check_training_engine
from alignkit.stages.ppo.check_value import check_value
from alignkit.stages.sections import check_adapter_stacking, check_base_stays, check_sections
from alignkit.training.sharding import fsdp_settings, sharding_asked

# What of FSDP a policy cannot have, and why.
_UNSHARDED = {
    ("activation_checkpointing", "true"): "it mixes up adapters; take train.gradient_checkpointing=true",
    ("reshard_after_forward", "false"): "scoring has no backward pass that would free the weights; take true",
    **dict.fromkeys([("offload_params", "true"), ("cpu_offload", "true")], "weights stay on the GPUs; take false"),
}
_TRUNCATING = ("top_k", "top_p", "min_p", "repetition_penalty")


def check_job(job: PpoJob) -> None:
    """Find everything that can be known before a file is read through or a model is loaded.

    Raises:
        ConfigError: every problem found, together.
    """
    problems = check_prompts(job.data) + check_sampling(job.sampling, over_time=True) + _reward_problems(job)
    problems += check_sections(job, "ppo") + check_adapter_stacking(job)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    problems += _batch_problems(job, num_processes) + _sampling_problems(job) + _dropout_problems(job)
    problems += check_base_stays(job) + _schedule_problems(job) + check_advantage(job) + _reference_problems(job)
    problems += check_training_engine(job)
    problems += check_value(job) if estimator_of(job.ppo).has_critic else []
    problems += _sharding_problems(job)
    if problems:
        raise ConfigError(*problems)


def _reward_problems(job: PpoJob) -> list[str]:
    try:
        return check_rewards(parse_rewards(job.reward))
    except AlignkitError as error:
        return list(error.problems)


def _reference_problems(job: PpoJob) -> list[str]:
    problems = [] if job.reference.name is None else reference_problems(job.reference.name, job.model)
    if job.reference.name is not None and not needs_reference(job.ppo):
        problems.append(f"reference.name={job.reference.name} has no effect with ppo.kl_coef=0, which measures no KL")
    if job.reference.keep:
        problems.append("reference.keep has no effect on PPO, whose completions are new in every update: leave it out")
    return problems


def _batch_problems(job: PpoJob, num_processes: int) -> list[str]:
    """A minibatch is whole forward passes on every process, or accumulation would weigh its parts unevenly."""
    ppo, size = job.ppo, job.train.get("per_device_train_batch_size")
    num, parts = ppo.num_prompts * ppo.num_generations, ppo.num_mini_batches * num_processes
    across = f" on {num_processes} processes" if num_processes > 1 else ""
    product = f"ppo.num_prompts={ppo.num_prompts} × ppo.num_generations={ppo.num_generations} = {num} completions"
    if num % parts:
        step = parts // math.gcd(parts, ppo.num_generations)
        below = ppo.num_prompts // step * step
        nearest = f"{below} or {below + step}" if below else str(step)
        return [
            f"{product} do not divide into ppo.num_mini_batches={ppo.num_mini_batches} equal minibatches{across}: take "
            f"ppo.num_prompts={nearest}, or another ppo.num_mini_batches"
        ]
    part = num // parts
    if not isinstance(size, int) or size < 1 or part % size == 0:
        return []  # the check of the section refuses a size of another kind
    fits = max(smaller for smaller in range(1, size) if part % smaller == 0)
    return [
        f"{product} are ppo.num_mini_batches={ppo.num_mini_batches} minibatches of {num // ppo.num_mini_batches}"
        f"{across}, which are no whole passes of train.per_device_train_batch_size={size}: take "
        f"train.per_device_train_batch_size={fits}"
    ]


def _sampling_problems(job: PpoJob) -> list[str]:
    sampling, problems = job.sampling, []
    if not draws(sampling):
        greedy = "sampling.do_sample=false" if sampling.do_sample is False else "sampling.temperature=null"
        problems.append(f"{greedy}: PPO learns from draws; leave it out")
    if sampling.stop:
        problems.append("sampling.stop has no effect on PPO, which learns when to end: leave it out")
    for name in _TRUNCATING:
        value = getattr(sampling, name)
        if value is not None and not job.ppo.allow_truncated_sampling:
            problems.append(
                f"sampling.{name}={value}: the sampler would be another distribution than the policy that is trained; "
                "leave it out, or say ppo.allow_truncated_sampling=true"
            )
    return problems


def _dropout_problems(job: PpoJob) -> list[str]:
    why = "with dropout the policy that samples is not the policy that is trained"
    problems = []
    if dropout := job.lora.get("lora_dropout"):
        problems.append(f"lora.lora_dropout={dropout}: {why}; set it to 0, or take lora=ppo")
    problems += [
        f"model.config.{name}={value}: {why}; set it to 0"
        for name, value in job.model.config.items()
        if ("dropout" in name or name.endswith("pdrop")) and value
    ]
    return problems


def _sharding_problems(job: PpoJob) -> list[str]:
    match sharding_asked(job.train):
        case "FSDP":
            found, asked = fsdp_settings(job.train), job.train.get("fsdp") or True
            words = f"train.fsdp={as_yaml(asked)} with PPO: take train.fsdp=true, and train.fsdp_config for the rest"
            return [words] * (asked is not True) + [
                f"fsdp_{name}={value} cannot be set with PPO: {why}"
                for (name, value), why in _UNSHARDED.items()
                if found.get(name) == value
            ]
        case "DeepSpeed":
            return ["DeepSpeed: PPO is sharded by FSDP alone: launch it with FSDP version 2, or take train.fsdp=true"]
    if job.ppo.gather is not None:
        return [f"ppo.gather={job.ppo.gather} has no effect where FSDP shards no weights: leave it out"]
    return []


def _schedule_problems(job: PpoJob) -> list[str]:
    ppo, problems = job.ppo, []
    if ppo.kl_target is not None and ppo.kl_coef_end is not None:
        problems.append("ppo.kl_target steers ppo.kl_coef and ppo.kl_coef_end draws it in a line: give one of them")
    if ppo.kl_target is not None and ppo.kl_coef == 0:
        problems.append("ppo.kl_target has no effect with ppo.kl_coef=0: steering multiplies it; start above 0")
    if job.value.warmup_updates >= ppo.num_updates:
        problems.append(
            f"value.warmup_updates={job.value.warmup_updates} leaves none of ppo.num_updates={ppo.num_updates} to "
            "train the policy"
        )
    return problems
