"""What is wrong with the section `engine` of a PPO job, and with other settings beside it."""

from __future__ import annotations

from collections.abc import Iterator

from alignkit.choices import EngineName, Init
from alignkit.config import PpoConfig
from alignkit.engine.check import check_engine
from alignkit.jobs import PpoJob
from alignkit.models.source import ModelSource


def check_training_engine(job: PpoJob) -> list[str]:
    """List what cannot be done with an engine, one line each."""
    return [*check_engine(job.engine), *(_beside(job) if job.engine.name is EngineName.vllm else ())]


def _beside(job: PpoJob) -> Iterator[str]:
    if job.model.init is Init.random:
        yield "model.init=random: a server of engine.servers reads a model folder; save one first"
    elif not job.lora and not ModelSource.of(job.model).is_adapter:
        yield (
            "engine.name=vllm hands an adapter to the servers after each update, and without lora every weight trains: "
            "take lora=ppo, or engine.name=local"
        )
    if job.ppo.generation_batch_size != PpoConfig().generation_batch_size:
        yield (
            f"ppo.generation_batch_size={job.ppo.generation_batch_size} has no effect with engine.name=vllm: a server "
            "batches what it is asked; leave it out"
        )
    for name in ("top_k", "top_p", "min_p", "repetition_penalty"):
        if (value := getattr(job.sampling, name)) is not None and job.ppo.allow_truncated_sampling:
            yield (
                f"sampling.{name}={value} with engine.name=vllm: the servers' log-probabilities are of another "
                "distribution than the trainer's, and their mismatch cannot be measured; leave it out"
            )
