"""The estimator of advantages in a PPO job: what is wrong beside it, what it chooses, and how that is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from alignkit.choices import KlAs, LossOver, RatioOver, ScoreScaling
from alignkit.config import PpoConfig, ValueConfig
from alignkit.estimators import estimator_of, needs_reference, settle
from alignkit.jobs import PpoJob
from alignkit.runs.given import Given
from alignkit.stages.ppo.overlong import check_overlong

_AVERAGES = {
    LossOver.tokens: "the tokens of a minibatch",
    LossOver.completions: "the completions of a minibatch, of each one's mean",
    LossOver.constant: "a constant, sampling.max_new_tokens × completions",
}
_PENALTIES = {
    KlAs.reward: "reward",
    KlAs.loss: "loss, by k3",
    KlAs.loss_unbiased: "loss, by k3 times the ratio",
}


def check_advantage(job: PpoJob) -> list[str]:
    """List the settings that have no meaning beside the estimator, or beside each other, one line each."""
    problems = [*_without_meaning(job.ppo), *_group_problems(job.ppo), *_kl_problems(job.ppo)]
    if not estimator_of(job.ppo).has_critic:
        problems += [
            f"value.{item.name}={getattr(job.value, item.name)}: ppo.advantage={job.ppo.advantage} has no value "
            "function; leave it out"
            for item in fields(ValueConfig)
            if getattr(job.value, item.name) != getattr(ValueConfig(), item.name)
        ]
    return problems + _truncation_problems(job.ppo) + check_overlong(job.ppo.overlong, job.sampling.max_new_tokens)


def _without_meaning(ppo: PpoConfig) -> Iterator[str]:
    estimator = estimator_of(ppo)
    for name, reason in estimator.reasons.items():
        if (value := getattr(ppo, name)) is not None:
            yield f"ppo.{name}={_typed(value)} has no effect with ppo.advantage={ppo.advantage}: {reason}; leave it out"
    if estimator.whitens_always and ppo.whiten_advantages is False:
        yield f"ppo.whiten_advantages=false: ppo.advantage={ppo.advantage} has no other scale; leave it out"
    if estimator.divides_by_spread and ppo.score_scaling is ScoreScaling.running:
        yield (
            f"ppo.score_scaling=running has no effect with ppo.advantage={ppo.advantage}, which divides by the spread "
            "of each group already; leave it out"
        )


def _group_problems(ppo: PpoConfig) -> Iterator[str]:
    compares = estimator_of(ppo).compares_group
    if compares and ppo.num_generations < 2:
        yield (
            f"ppo.num_generations=1: ppo.advantage={ppo.advantage} compares the completions of a prompt with each "
            "other; take 2 or more, such as 8"
        )
    if ppo.refill_flat_groups and not compares:
        yield (
            f"ppo.refill_flat_groups={ppo.refill_flat_groups} has no meaning with ppo.advantage={ppo.advantage}, which "
            "does not compare the completions of a prompt with each other; leave it out"
        )


def _kl_problems(ppo: PpoConfig) -> Iterator[str]:
    if ppo.kl_target is not None and settle(ppo).kl_as is not KlAs.reward and needs_reference(ppo):
        chosen = "" if ppo.kl_as else f" with ppo.advantage={ppo.advantage}"
        yield (
            f"ppo.kl_target={ppo.kl_target} adapts a KL penalty in the reward, which{chosen} is in the loss: leave it "
            "out, or say ppo.kl_as=reward"
        )
    if ppo.max_kl is not None and not needs_reference(ppo):
        yield f"ppo.max_kl={ppo.max_kl} has no effect with ppo.kl_coef=0: no reference is held to measure from"


def _truncation_problems(ppo: PpoConfig) -> list[str]:
    if ppo.mask_truncated and ppo.missing_eos_penalty is not None and not estimator_of(ppo).compares_group:
        return [
            f"ppo.missing_eos_penalty={ppo.missing_eos_penalty} has no effect beside ppo.mask_truncated=true: the loss "
            f"does not see what has no end token, and ppo.advantage={ppo.advantage} compares it with nothing; give one "
            "of them"
        ]
    return []


def settled_given(job: PpoJob, given: Given | None) -> Given | None:
    """Return the settings as they were given, with what was chosen for those of `ppo` and `train` that are null.

    Args:
        job: as it was given.
        given: its settings; None where the job itself is recorded.
    """
    if given is None or not isinstance(section := given.settings.get("ppo"), Mapping):
        return given
    settled = asdict(settle(job.ppo))
    chosen = {name: settled[name] for name in settled if section.get(name) is None and settled[name] is not None}
    origins = {f"ppo.{name}": f"ppo.advantage={job.ppo.advantage}" for name in chosen}
    settings = {**given.settings, "ppo": {**section, **chosen}}
    train, key = given.settings.get("train"), "per_device_train_batch_size"
    if isinstance(train, Mapping) and train.get(key) is None:
        settings["train"] = {**train, key: job.train[key]}
        origins[f"train.{key}"] = "the size of a minibatch"
    return replace(given, settings=settings, origins={**given.origins, **origins})


def describe_advantage(ppo: PpoConfig) -> str:
    """Say on the first screen what the estimator computes, and what it chose.

    Args:
        ppo: the section, settled.
    """
    estimator = estimator_of(ppo)
    assert ppo.loss_over is not None
    assert ppo.kl_as is not None
    parts = [f"{ppo.advantage}: {estimator.formula} ({estimator.source})"]
    if not estimator.has_critic:
        parts.append("no value function")
    if needs_reference(ppo):
        parts.append(f"the KL penalty is part of the {_PENALTIES[ppo.kl_as]}")
    parts.append(f"the loss is averaged over {_AVERAGES[ppo.loss_over]}")
    if ppo.ratio_over is RatioOver.completion:
        parts.append("the ratio is that of the completion")
    names = [name for name in ("gamma", "lam", "whiten_advantages") if getattr(ppo, name) is not None]
    parts += [f"ppo.{name}={_typed(getattr(ppo, name))}" for name in names]
    return "; ".join(parts)


def _typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
