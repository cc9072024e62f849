"""Proximal policy optimization: from prompts, a policy and a reward to a trained run directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from alignkit.choices import ControlTokens, EngineName, TrainOn
from alignkit.data.encode.masking import EncodeRules
from alignkit.data.encode.replies import ReplyForm
from alignkit.data.views.first_rows import write_first_rows
from alignkit.estimators import estimator_of, needs_reference
from alignkit.jobs import PpoJob
from alignkit.models.save import save_model
from alignkit.ppo.build import backbone_for_rewards, build_policy
from alignkit.ppo.engine import Engine, ForgetKept
from alignkit.ppo.policy import Policy
from alignkit.ppo.record import RolloutFile, conclude, show_before_training
from alignkit.ppo.rollout import Rollout, RolloutGenerator
from alignkit.ppo.sharded import below, gather_weights
from alignkit.ppo.trainer import PpoTrainer
from alignkit.rewards.load import load_rewards
from alignkit.rewards.reply import ReplyDecoder
from alignkit.rewards.source import parse_rewards
from alignkit.rewards.weighted import Rewards
from alignkit.runs.given import Given
from alignkit.stages.fates import check_fates
from alignkit.stages.opening import log_plan, open_run, warn
from alignkit.stages.ppo.advantage import describe_advantage, settled_given
from alignkit.stages.ppo.arguments import build_ppo_arguments
from alignkit.stages.ppo.check import check_job
from alignkit.stages.ppo.data import Prepared, prepare, view_of
from alignkit.stages.ppo.engine import build_engine, engine_facts, open_servers
from alignkit.stages.sections import template_mismatches
from alignkit.stages.shortage import what_to_lower
from alignkit.stages.trainer import build_callbacks, kept_step
from alignkit.training.session import explain_full_disk, train

logger = logging.getLogger(__name__)

_SHARED = "; each process loads all of it, then holds its share; checkpoints hold whole weights"


def run(
    job: PpoJob,
    run_dir: Path,
    *,
    given: Given | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    trainer_class: type[PpoTrainer] = PpoTrainer,
) -> None:
    """Train, and leave a run directory that any later command takes as a model.

    Args:
        job: the settings.
        run_dir: of this run; nothing else is written to.
        given: the settings as they were given, interpolations unresolved, and where they came from.
        callbacks: of transformers, told of every step.
        trainer_class: what trains.

    Raises:
        AlignkitError: the user's mistake, or what stopped the training, in words.
    """
    check_job(job)
    job, given = job.settled(), settled_given(job, given)
    with open_run(job, "ppo", run_dir, given, trainer_class) as entry, ExitStack() as stack:
        if entry.finished:
            return
        prepared = prepare(job, now=entry.now)
        check_fates(entry, prepared.data.ledger)
        args = build_ppo_arguments(job, run_dir, record=entry.record, held_out=bool(prepared.data.held_out))
        servers = open_servers(job, prepared) if job.engine.name is EngineName.vllm else []
        policy = _policy(job, prepared)
        backbone = backbone_for_rewards(policy, job.model)
        rewards = load_rewards(parse_rewards(job.reward), job.model, device=args.device, backbone=backbone)
        stack.callback(rewards.close)
        entry.begin()
        of_rewards = rewards.template_mismatches(prepared.template.jinja, job.model.name)
        warn(*template_mismatches(job, prepared.template), *of_rewards)
        engine = (
            build_engine(job, [server for server, _ in servers], run_dir, eos_ids=policy.eos_ids) if servers else None
        )
        trainer = _trainer(job, run_dir, args, policy, prepared, rewards, engine, trainer_class, callbacks)
        if trainer.is_world_process_zero():
            prepared.data.ledger.write(run_dir / "rows.jsonl")
            write_first_rows(run_dir, view_of(job, prepared))
        facts = _facts(job, trainer, prepared)
        if engine is not None:
            stack.callback(engine.close)
            probes = None if trainer.is_fsdp_enabled else trainer.probe(engine)
            facts |= engine_facts(job, [served for _, served in servers], probes)
        log_plan(prepared.data.ledger, trainer, job, facts, entry)
        if engine is not None and entry.resuming:
            warn(engine.resumed())
        before: list[Rollout] = []

        def show_start() -> None:
            if engine is not None and trainer.is_fsdp_enabled:  # only now do the processes hold what can be asked
                for seen in trainer.probe(engine):
                    logger.info("%-9s %s", "server", seen)
            before.extend(_samples(job, trainer))
            show_before_training(before, trainer.held_out or trainer.prompts)

        trainer.when_placed(show_start)
        with entry.timed("train"):
            train(trainer, resume=entry.resuming, stage="ppo", lower=what_to_lower(job))
        warn(*rewards.truncations())
        if trainer.num_skipped:
            warn(f"{trainer.num_skipped:,} completions had no score and were left out of their updates")
        after = _samples(job, trainer)
        _save(trainer, run_dir, prepared)
        if engine is not None:
            for line in trainer.servers(engine):
                logger.info("%-17s %s", "server", line)
            engine.remove()
        entry.result = conclude(
            run_dir,
            trainer.state.log_history,
            prompts=trainer.held_out or trainer.prompts,
            before=before,
            after=after,
            kept_step=kept_step(trainer),
            reference=trainer.policy.reference,
        )


def _policy(job: PpoJob, prepared: Prepared) -> Policy:
    return build_policy(
        job.model,
        job.lora,
        job.value,
        reference=job.reference.name,
        tokenizer=prepared.tokenizer,
        end_ids=prepared.template.stop_ids,
        entropy_trains=job.ppo.entropy_coef > 0,
        has_critic=estimator_of(job.ppo).has_critic,
        has_reference=needs_reference(job.ppo),
        seed=job.seed,
    )


def _trainer(
    job: PpoJob,
    run_dir: Path,
    args: Any,
    policy: Policy,
    prepared: Prepared,
    rewards: Rewards,
    engine: Engine | None,
    trainer_class: type[PpoTrainer],
    callbacks: Sequence[TrainerCallback],
) -> PpoTrainer:
    kept = RolloutFile(
        run_dir / "rollouts.jsonl", prepared.data.train, keep=job.ppo.keep_rollouts, show_every=job.ppo.show_every
    )
    rules = EncodeRules(TrainOn.assistant, ControlTokens.neutralise, job.data.tools, job.data.reasoning)
    return trainer_class(
        policy=policy,
        prompts=prepared.data.train,
        held_out=prepared.data.held_out,
        generator=RolloutGenerator(
            prepared.tokenizer,
            policy.eos_ids,
            ReplyDecoder(ReplyForm(prepared.template, prepared.tokenizer, rules)),
            job.seed,
            job.ppo.generation_batch_size,
            engine,
        ),
        sampling=job.sampling,
        rewards=rewards,
        ppo=job.ppo,
        value=job.value,
        shuffle=job.data.shuffle,
        on_rollout=kept,
        args=args,
        tokenizer=prepared.tokenizer,
        callbacks=build_callbacks(job, run_dir, kept, *([ForgetKept(engine)] if engine else []), *callbacks),
        engine=engine,
    )


def _facts(job: PpoJob, trainer: PpoTrainer, prepared: Prepared) -> dict[str, str]:
    """What will happen, in a line each."""
    ppo, data = job.ppo, prepared.data
    num = ppo.num_prompts * ppo.num_generations
    return {
        "rows": "; ".join(source.line(as_prompts=True) for source in data.read),
        "prompts": f"{len(data.train):,} to learn on, {len(data.held_out):,} held out",
        **({"reference": str(trainer.policy.reference)} if trainer.policy.reference else {}),
        "memory": trainer.policy.held + (_SHARED if trainer.is_fsdp_enabled else ""),
        "template": f"{prepared.template.name}; a turn ends in {prepared.template.end_token}",
        "reward": str(trainer.rewards),
        "advantage": describe_advantage(ppo),
        "rollout": f"{num:,} completions ({ppo.num_prompts} prompts × {ppo.num_generations}), at most "
        f"{job.sampling.max_new_tokens} tokens each",
        "update": f"a rollout, then {ppo.num_ppo_epochs} passes of {ppo.num_mini_batches} minibatches of "
        f"{num // ppo.num_mini_batches}, {trainer.args.per_device_train_batch_size} at a time; a step is an update",
    }


def _samples(job: PpoJob, trainer: PpoTrainer) -> list[Rollout]:
    """What the policy answers now to the first held-out prompts (without those, to the first of all), scored."""
    prompts = trainer.held_out or trainer.prompts
    distinct: dict[tuple[int, ...], int] = {}
    for index, prompt in enumerate(prompts):
        distinct.setdefault(tuple(prompt.ids), index)
    return trainer.generate_and_score(prompts, [(index, 0) for index in list(distinct.values())[: job.samples]])


def _save(trainer: PpoTrainer, run_dir: Path, prepared: Prepared) -> None:
    policy = trainer.policy
    # a random base is in no other place
    has_own_base = policy.adapters is not None and not policy.model.get_base_model().name_or_path
    weights = gather_weights(policy, frozen=has_own_base)
    if not trainer.is_world_process_zero():
        return
    with explain_full_disk(run_dir):
        policy.value.save(run_dir, weights)
        model, whole = policy.finished(), below(weights, "model.")
        if whole is not None:  # the other adapters are in it
            names = model.state_dict().keys()
            whole = {name: weight for name, weight in whole.items() if name in names}
        save_model(
            model,
            prepared.tokenizer,
            run_dir,
            jinja=prepared.template.jinja,
            stop_ids=prepared.template.stop_ids,
            state_dict=whole,
        )
