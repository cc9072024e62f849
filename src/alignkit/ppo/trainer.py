"""PPO on transformers' trainer: one of its steps is one update, a rollout and the optimizer steps that follow it.

So everything it counts (`eval_steps`, `save_steps`, the learning rate's schedule) counts updates, and a checkpoint
always lies between two rollouts. Each draw is a function of the seed and of what it is for: a resumed run has no random
state to restore.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from alignkit.choices import Gather, HealthPolicy
from alignkit.config import PpoConfig, SamplingConfig, ValueConfig
from alignkit.data.sets.prompts import Prompt
from alignkit.engine.probe import Probe
from alignkit.engine.spread import Member
from alignkit.errors import AlignkitError, RewardError, TrainingError
from alignkit.ppo.engine import SECONDS, Engine
from alignkit.ppo.experience import RolloutTensors
from alignkit.ppo.groups import group_metrics, grouped, is_flat
from alignkit.ppo.health import HealthMonitor
from alignkit.ppo.kl import KLController, token_kl
from alignkit.ppo.learner import Learner, Update, temperature_of
from alignkit.ppo.metrics import held_out_metrics, kl_and_entropy, mean, rollout_metrics, throughput_metrics
from alignkit.ppo.policy import Policy
from alignkit.ppo.rollout import Rollout, RolloutGenerator, add_scores
from alignkit.ppo.schedule import linear, prompts_of_refill, prompts_of_update
from alignkit.ppo.score_shaping import ScoreShaping
from alignkit.ppo.sharded import call_alone, is_sharded
from alignkit.rewards.weighted import Rewards
from alignkit.sampling.settings import sampling_at

logger = logging.getLogger(__name__)


class PpoTrainer(Learner):
    """Proximal policy optimization (Schulman et al. 2017) of a language model against any reward.

    Args:
        policy: model, value function and reference.
        prompts: to learn on.
        held_out: to evaluate on; empty where none are.
        generator: completes prompts.
        sampling: how tokens are drawn; what moves in it moves over the updates.
        rewards: score completions.
        ppo: the section, settled.
        value: the section.
        shuffle: take the prompts in a fresh order each time round.
        on_rollout: called with (update counted from 1, rollouts, KL of each that has a score) after each update, on the
            main process.
        args: upstream's arguments, whose steps are updates.
        tokenizer: of the policy.
        callbacks: as upstream.
        engine: servers that complete the prompts; None where the policy itself does.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        generator: RolloutGenerator,
        sampling: SamplingConfig,
        rewards: Rewards,
        ppo: PpoConfig,
        value: ValueConfig,
        shuffle: bool,
        on_rollout: Callable[[int, Sequence[Rollout], Sequence[float | None]], None],
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: Sequence[TrainerCallback],
        engine: Engine | None = None,
    ) -> None:
        super().__init__(
            policy=policy,
            prompts=prompts,
            held_out=held_out,
            sampling=sampling,
            ppo=ppo,
            value=value,
            args=args,
            tokenizer=tokenizer,
            callbacks=callbacks,
            compares=engine is not None,
        )
        self.engine = engine
        self.generator, self.rewards, self.shuffle, self.on_rollout = generator, rewards, shuffle, on_rollout
        self.controller = KLController(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
        self.shaping = ScoreShaping(ppo)
        compares_group, reference = self.estimator.compares_group, str(policy.reference)
        most = engine.section.max_mismatch if engine is not None else None
        self.health = HealthMonitor(ppo.max_kl, sampling.max_new_tokens, compares_group, reference, most)
        self.num_skipped = 0
        self._said_cut = False
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}

    def state_of_run(self) -> dict[str, Any]:
        return {
            "controller": self.controller.state_dict(),
            "shaping": self.shaping.state_dict(),
            "health": self.health.state_dict(),
            "num_skipped": self.num_skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.controller.load_state_dict(state["controller"])
        self.shaping.load_state_dict(state["shaping"])
        self.health.load_state_dict(state["health"])
        self.num_skipped = state["num_skipped"]

    # An update

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Make a whole update but for its last optimizer step, which upstream takes.

        Returns:
            The mean loss of its minibatches.
        """
        update = self._update(int(inputs["update"]))
        if self.engine is not None:
            self.engine.take_throughput()  # of an evaluation, which is none of this update's
        with self._timed("rollout") as rollout_time:
            rollouts, asked = self._roll_out(update)
        self._warn_of_cut(rollouts, update)
        with self._timed("scoring") as scoring_time:
            rows = self.pad(rollouts, self.prompts)
            shaped = self.shaping(rollouts)
            in_loss = [rollout.has_ended or not self.ppo.mask_truncated for rollout in rollouts]
            tensors = self.score_rollouts(model, rows, shaped, update, in_loss=in_loss)
        of_engine: dict[str, float] = {}
        if self.engine is not None:
            tensors, of_engine = self.engine.compare(rollouts, tensors)
            of_engine |= self._throughput(self.engine)
        with self._timed("update") as update_time:
            losses = self.learn(model, rollouts, rows, tensors, update)
        measured = kl_and_entropy(tensors) | losses | rollout_metrics(rollouts, tensors, shaped)
        measured |= group_metrics(shaped, self.ppo.num_generations) | self._refill_metrics(rollouts, asked)
        measured |= {"kl_coef": update.kl_coef, "temperature": update.temperature} | of_engine
        measured |= throughput_metrics(
            rows,
            num_drawn=sum(len(rollout.ids) for rollout in asked),
            rollout_seconds=rollout_time[0],
            scoring_seconds=scoring_time[0],
            update_seconds=update_time[0],
            num_passes=losses["optimizer_steps"] / self.ppo.num_mini_batches,
        )
        self.num_skipped += sum(rollout.score is None for rollout in asked)
        if self.policy.has_reference:
            self.controller.update(measured["objective/kl"], num_rollouts=len(rollouts))
        self._report(update, rollouts, tensors, measured)
        return torch.tensor(measured["loss/total"], device=self.args.device)

    def _refill_metrics(self, rollouts: Sequence[Rollout], asked: Sequence[Rollout]) -> dict[str, float]:
        """Count the further prompts, and average over all completions: those that remain are a choice by score."""
        if not self.ppo.refill_flat_groups:
            return {}
        return {
            "group/refilled": float(len(asked) - len(rollouts)) / self.ppo.num_generations,
            "group/score_asked": mean([rollout.score for rollout in asked if rollout.score is not None]),
        }

    def _update(self, number: int) -> Update:
        kl_coef = linear(self.ppo.kl_coef, self.ppo.kl_coef_end, update=number, num_updates=self.ppo.num_updates)
        return Update(
            number,
            sampling=sampling_at(self.sampling, number / max(self.ppo.num_updates - 1, 1)),
            kl_coef=kl_coef if self.ppo.kl_target is None else self.controller.coef,
            trains_policy=number >= self.value.warmup_updates,
        )

    def _roll_out(self, update: Update) -> tuple[list[Rollout], list[Rollout]]:
        """The rollout of an update, scored, the same on every process, and all that was asked for it.

        Groups that are flat give way to those of further prompts, as often as `ppo.refill_flat_groups` says.
        """
        num_all, seed, size = len(self.prompts), self.args.seed, self.ppo.num_generations
        indices = prompts_of_update(
            num_all, update.number, num_prompts=self.ppo.num_prompts, seed=seed, shuffle=self.shuffle
        )
        asked = self._ask(indices, update, f"update {update.number}")
        groups = grouped(asked, size)
        for refill in range(self.ppo.refill_flat_groups):
            num_flat = sum(map(self._is_flat, groups))
            if num_flat == 0:
                break
            taken = {rollout.prompt for rollout in asked}
            indices = prompts_of_refill(num_all, update.number, refill, num_prompts=num_flat, seed=seed, asked=taken)
            further = self._ask(indices, update, f"update {update.number} refill {refill}")
            fresh = (group for group in grouped(further, size) if not self._is_flat(group))
            groups = [next(fresh, group) if self._is_flat(group) else group for group in groups]
            asked = asked + further
        rollouts = [rollout for group in groups for rollout in group]
        return _with_a_score(rollouts, f"update {update.number + 1}"), asked

    def _is_flat(self, group: Sequence[Rollout]) -> bool:
        return is_flat(self.shaping.penalized(group))

    def _ask(self, indices: Sequence[int], update: Update, draw_stream: str) -> list[Rollout]:
        """The completions of prompts, scored, group by group; each process generates and scores its share."""
        requests: list[tuple[int, int]] = []
        times_before: Counter[int] = Counter()  # a prompt that is taken twice draws anew
        for index in indices:
            first = times_before[index] * self.ppo.num_generations
            requests += [(index, first + k) for k in range(self.ppo.num_generations)]
            times_before[index] += 1
        return self._complete(self.prompts, requests, draw_stream=draw_stream, sampling=update.sampling)

    def generate_and_score(self, prompts: Sequence[Prompt], requests: Sequence[tuple[int, int]]) -> list[Rollout]:
        """Complete and score prompts, to show them; every process must call this.

        Args:
            prompts: all of them.
            requests: (index of the prompt, generation) of each completion.
        """
        return self._complete(prompts, requests, draw_stream="samples", sampling=sampling_at(self.sampling, 0.0))

    def _complete(
        self,
        prompts: Sequence[Prompt],
        requests: Sequence[tuple[int, int]],
        *,
        draw_stream: str,
        sampling: SamplingConfig,
    ) -> list[Rollout]:
        """Completions with their scores, in the order of the requests, the same on every process."""
        share = requests[self.args.process_index :: self.args.world_size]
        rollouts: list[Rollout] = []

        def complete_share() -> None:
            nonlocal rollouts
            if share:
                with self.computing():
                    rollouts = self.generator(
                        self.policy.model, prompts, share, draw_stream=draw_stream, sampling=sampling
                    )
                rollouts = add_scores(rollouts, prompts, self.rewards)

        if self.engine is not None:
            self._on_all(partial(self._hand_over, self.engine))
        if self.engine is None or self.rewards.share_policy:
            self._on_all(complete_share, alone=True)
        else:
            self._on_all(complete_share)
        if self.args.world_size == 1:
            return rollouts
        own = range(self.args.process_index, len(requests), self.args.world_size)
        gathered = gather_object(list(zip(own, rollouts, strict=True)))
        return [rollout for _, rollout in sorted(gathered, key=lambda item: item[0])]

    def _hand_over(self, engine: Engine) -> None:
        """Give the policy as it is now to the servers."""
        assert self.policy.adapters is not None
        engine.hand_over(
            self.policy.adapters, writes=self.is_world_process_zero(), wait=self.accelerator.wait_for_everyone
        )

    def probe(self, engine: Engine) -> list[Probe]:
        """Hold what each server draws against the policy, before the first update; every process must call this.

        Raises:
            ConfigError: one line for each server that does not draw from the policy.
        """
        adapters, found = self.policy.adapters, list[Probe]()
        assert adapters is not None
        self.policy.eval()

        def ask() -> None:
            with self.computing():
                found.extend(engine.probe(adapters.model, [prompt.ids for prompt in self.prompts], self.sampling))

        writes, wait = self.is_world_process_zero(), self.accelerator.wait_for_everyone
        self._on_all(partial(engine.begin, adapters, writes=writes, wait=wait))
        self._on_all(ask, alone=True)
        return found

    def servers(self, engine: Engine) -> list[str]:
        """Say what each server did for all processes, a line each; every process must call this."""
        shares = gather_object([[(m.lost, m.num_completions, m.num_tokens, m.seconds) for m in engine.spread.members]])
        lines = []
        for member, of_each in zip(engine.spread.members, zip(*shares, strict=True), strict=True):
            lost, completions, tokens, seconds = zip(*of_each, strict=True)
            whole = Member(member.server, max(lost, key=len), sum(completions), sum(tokens), max(seconds))
            lines.append(str(whole))
        return lines

    def _throughput(self, engine: Engine) -> dict[str, float]:
        """What the servers did for all processes since the last call, which ask them side by side."""
        shares: list[dict[str, float]] = gather_object([engine.take_throughput()])
        return {name: (max if name == SECONDS else sum)(share[name] for share in shares) for name in shares[0]}

    def _on_all(self, function: Callable[[], None], *, alone: bool = False) -> None:
        """Call a function that may fail on some processes; then it fails on all, or they would wait for each other.

        Args:
            function: to call.
            alone: it passes through the model as often as this process needs (`call_alone`).
        """
        problem: AlignkitError | None = None

        def attempt() -> None:
            nonlocal problem
            try:
                function()
            except AlignkitError as error:
                problem = error

        by_default = Gather.once if self.engine is None else Gather.layers
        call_alone(self.policy, attempt, self.ppo.gather or by_default) if alone else attempt()
        told: list[Sequence[str]] = gather_object([problem.problems if problem is not None else ()])
        if problem is not None:
            raise problem
        if elsewhere := next(filter(None, told), None):
            raise TrainingError(*elsewhere)

    @contextmanager
    def _timed(self, part: str) -> Iterator[list[float]]:
        """Measure the seconds of a part of an update; scripts that watch the parts look for its name."""
        seconds, started = [0.0], time.perf_counter()
        yield seconds
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[0] = time.perf_counter() - started

    # What is reported

    def _report(
        self, update: Update, rollouts: Sequence[Rollout], tensors: RolloutTensors, measured: dict[str, float]
    ) -> None:
        for name, value in measured.items():
            self._metrics["train"].setdefault(name, []).append(value)
        if self.is_world_process_zero():
            self.on_rollout(update.number + 1, rollouts, _kl_of_each(rollouts, tensors))
        self._warn_or_stop(self.health.check_update(measured), f"update {update.number + 1}")

    def _warn_or_stop(self, warnings: Sequence[str], when: str) -> None:
        if self.ppo.health is HealthPolicy.off:
            return
        for warning in warnings:
            if self.ppo.health is HealthPolicy.stop:
                raise TrainingError(f"{when}: {warning} (ppo.health=stop)")
            logger.warning("%s: %s", when, warning)

    def _warn_of_cut(self, rollouts: Sequence[Rollout], update: Update) -> None:
        """Say once that responses are scored as if they had ended, where nothing is subtracted for it."""
        if self._said_cut or self.ppo.missing_eos_penalty is not None or self.ppo.mask_truncated:
            return
        lines = self.rewards.scored_though_cut(
            sum(not rollout.has_ended for rollout in rollouts),
            len(rollouts),
            policy=f"update {update.number + 1}",
            max_new_tokens=update.sampling.max_new_tokens,
        )
        for line in lines:
            logger.warning("%s; ppo.missing_eos_penalty=… makes them worth less", line)
        self._said_cut = bool(lines)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            gathered, self._metrics["train"] = self._metrics["train"], defaultdict(list)
            rest = {key: value for key, value in logs.items() if key != "loss"}
            logs = {name: mean(values) for name, values in gathered.items()} | rest
        super().log(logs, *args, **kwargs)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Complete and score the held-out prompts: mean score with its standard error, KL and length."""
        self.policy.train(False)
        sampling = sampling_at(self.sampling, 0.0)  # the same throughout, or scores could not be compared
        requests = [(index, 0) for index in range(len(self.held_out))]
        rollouts = self._complete(self.held_out, requests, draw_stream="evaluation", sampling=sampling)
        _with_a_score(rollouts, "the held-out prompts")
        measured = held_out_metrics(rollouts, kl=self._held_out_kl(rollouts, temperature_of(sampling)))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._warn_or_stop(self.health.check_evaluation(measured["score"]), f"update {self.state.global_step}")
        return metrics

    @torch.no_grad()
    def _held_out_kl(self, rollouts: Sequence[Rollout], temperature: float) -> float | None:
        """KL to the reference, if any, in nats per completion, each process's share of the rows the longest first."""
        if not self.policy.has_reference:
            return None
        size, total = self.args.per_device_train_batch_size, torch.zeros((), device=self.args.device)
        rows = self.pad(rollouts, self.held_out)
        order = sorted(range(len(rollouts)), key=lambda index: -len(rollouts[index].ids))
        share = order[self.args.process_index :: self.args.world_size]
        for start in range(0, math.ceil(len(order) / self.args.world_size), size):
            own = share[start : start + size]
            if not own and not is_sharded(self.policy):
                break
            piece = rows.take(own or order[:1])  # where weights are sharded, every process makes as many passes
            with self.computing():
                logprobs_BT = self.policy.logprobs(piece, temperature=temperature)
                ref_BT = self.policy.reference_logprobs(piece, temperature=temperature)
            total += ((logprobs_BT - ref_BT) * piece.mask_BT).sum() * bool(own)
        return float(self.sum_of_all(total)) / max(len(rollouts), 1)


def _kl_of_each(rollouts: Sequence[Rollout], tensors: RolloutTensors) -> list[float | None]:
    """KL to the reference of each completion, in nats; None where there is no reference, or no score."""
    if tensors.ref_logprobs_BT is None:
        return [None] * len(rollouts)
    kl_BT = token_kl(tensors.logprobs_BT, tensors.ref_logprobs_BT, tensors.mask_BT, estimator="k1")
    kl_B = kl_BT.sum(-1).tolist()
    return [None if one.score is None else kl for one, kl in zip(rollouts, kl_B, strict=True)]


def _with_a_score(rollouts: list[Rollout], what: str) -> list[Rollout]:
    """The rollouts, of which one at least must have a score: a mean of none would be made up."""
    if all(rollout.score is None for rollout in rollouts):
        raise RewardError(f"{what}: the reward failed on all {len(rollouts)} completions; the first failure is above")
    return rollouts
