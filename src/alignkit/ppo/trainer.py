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
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from alignkit.config import Health as OnSign
from alignkit.config import SamplingConfig
from alignkit.data.sets.prompts import Prompt
from alignkit.errors import RewardError, TrainingError
from alignkit.ppo.experience import Experience, Looked, experience, explained_variance, kl_and_entropy
from alignkit.ppo.health import Health
from alignkit.ppo.kl import KLController
from alignkit.ppo.learner import Learner, Update, temperature_of
from alignkit.ppo.rollout import Rollout, score
from alignkit.ppo.schedule import linear, prompts_of_update
from alignkit.ppo.score_shaping import Shaping
from alignkit.rewards.weighted import Rewards
from alignkit.sampling.settings import at

logger = logging.getLogger(__name__)


class PpoTrainer(Learner):
    """Proximal policy optimisation (Schulman et al. 2017) of a language model against any reward.

    Args:
        prompts: to learn on.
        held_out: to evaluate on; empty where none are.
        rewards: scores answers.
        shuffle: prompts are asked in a fresh order each time round.
        on_rollout: told (update counted from 1, rollouts, KL of each that has a score) after each update, on the main
            process.
        **rest: as `Learner`.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        rewards: Rewards,
        shuffle: bool,
        on_rollout: Callable[[int, Sequence[Rollout], Sequence[float | None]], None],
        **rest: Any,
    ) -> None:
        super().__init__(
            prompts=prompts,
            eval_dataset=list(held_out) or None,
            row_sources=[prompt.source for prompt in prompts],
            **rest,
        )
        self.held_out, self.rewards, self.shuffle, self.on_rollout = held_out, rewards, shuffle, on_rollout
        self.controller = KLController(self.ppo.kl_coef, self.ppo.kl_target, self.ppo.kl_horizon)
        self.shaping = Shaping(self.ppo)
        self.health = Health(self.ppo.max_kl, self.sampler.sampling.max_new_tokens)
        self.num_skipped = 0
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
        """A whole update but for its last optimizer step, which upstream takes.

        Returns:
            The mean loss of its minibatches.
        """
        update = self._update(int(inputs["update"]))
        with self._timed("rollout") as rollout_time:
            rollouts = self._roll_out(update)
        with self._timed("scoring") as scoring_time:
            looked = self.look(model, rollouts, update)
            shaped = self.shaping([rollout.score for rollout in rollouts], [r.has_ended for r in rollouts])
            scores_B = torch.tensor([value or 0.0 for value in shaped], device=self.args.device)
            taken, rewards_BT = experience(looked, scores_B, self.ppo, kl_coef=update.kl_coef)
        with self._timed("update") as update_time:
            losses = self.learn(model, rollouts, taken, update)
        measured = kl_and_entropy(looked) | losses
        measured |= self._measured(rollouts, looked, taken, rewards_BT, shaped)
        measured |= {"kl_coef": update.kl_coef, "temperature": update.temperature}
        num_drawn = sum(len(rollout.ids) for rollout in rollouts)
        num_fed = num_drawn + sum(len(self.prompts[rollout.prompt].ids) for rollout in rollouts)
        for name, seconds, num_tokens in (
            ("rollout", rollout_time[0], num_drawn),
            ("scoring", scoring_time[0], num_fed),
            ("update", update_time[0], num_fed * losses["optimizer_steps"] / self.ppo.num_mini_batches),
        ):
            measured |= {f"seconds/{name}": seconds, f"tokens_per_second/{name}": num_tokens / max(seconds, 1e-9)}
        measured["tokens_per_second"] = num_drawn / (rollout_time[0] + scoring_time[0] + update_time[0])
        self.controller.update(measured["objective/kl"], num_rollouts=len(rollouts))
        self._conclude(update, rollouts, looked, measured)
        return torch.tensor(measured["loss/total"], device=self.args.device)

    def _update(self, number: int) -> Update:
        kl_coef = linear(self.ppo.kl_coef, self.ppo.kl_coef_end, update=number, num_updates=self.ppo.num_updates)
        return Update(
            number,
            sampling=at(self.sampler.sampling, number / max(self.ppo.num_updates - 1, 1)),
            kl_coef=kl_coef if self.ppo.kl_target is None else self.controller.coef,
            trains_policy=number >= self.value.warmup_updates,
        )

    def _roll_out(self, update: Update) -> list[Rollout]:
        """The rollout of an update, scored, the same on every process; each writes and scores its share."""
        dealt = prompts_of_update(
            len(self.prompts),
            update.number,
            num_prompts=self.ppo.num_prompts,
            seed=self.args.seed,
            shuffle=self.shuffle,
        )
        asked: list[tuple[int, int]] = []
        dealt_before: Counter[int] = Counter()  # a prompt that is dealt twice draws anew
        for place in dealt:
            first = dealt_before[place] * self.ppo.num_generations
            asked += [(place, first + k) for k in range(self.ppo.num_generations)]
            dealt_before[place] += 1
        rollouts = self._answers(self.prompts, asked, of=f"update {update.number}", sampling=update.sampling)
        return _with_a_score(rollouts, f"update {update.number + 1}")

    def answer(self, prompts: Sequence[Prompt], asked: Sequence[tuple[int, int]]) -> list[Rollout]:
        """Complete and score prompts for a look at them; every process must call this.

        Args:
            prompts: all of them.
            asked: (place of the prompt, generation) of each completion.
        """
        return self._answers(prompts, asked, of="samples", sampling=at(self.sampler.sampling, 0.0))

    def _answers(
        self, prompts: Sequence[Prompt], asked: Sequence[tuple[int, int]], *, of: str, sampling: SamplingConfig
    ) -> list[Rollout]:
        share = asked[self.args.process_index :: self.args.world_size]
        rollouts: list[Rollout] = []
        problem: RewardError | None = None
        if share:
            with self.accelerator.autocast():
                rollouts = self.sampler(self.policy.model, prompts, share, of=of, sampling=sampling)
            try:
                rollouts = score(rollouts, prompts, self.rewards)
            except RewardError as error:
                problem = error
        (failed,) = self.largest(problem is not None)
        if problem is not None:
            raise problem
        if failed:
            raise TrainingError("another process says what is wrong with a reward")
        if self.args.world_size == 1:
            return rollouts
        mine = range(self.args.process_index, len(asked), self.args.world_size)
        everyones = gather_object(list(zip(mine, rollouts, strict=True)))
        return [rollout for _, rollout in sorted(everyones, key=lambda item: item[0])]

    @contextmanager
    def _timed(self, what: str) -> Iterator[list[float]]:
        seconds, started = [0.0], time.perf_counter()
        yield seconds
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[0] = time.perf_counter() - started

    # What is told

    def _measured(
        self,
        rollouts: Sequence[Rollout],
        looked: Looked,
        taken: Experience,
        rewards_BT: Tensor,
        shaped: Sequence[float | None],
    ) -> dict[str, float]:
        scored = [rollout.score for rollout in rollouts if rollout.score is not None]
        learnt = [value for value in shaped if value is not None]
        num = len(rollouts)
        self.num_skipped += num - len(scored)
        measured = {
            "objective/score": _mean(scored),
            "objective/score_std": _std(scored),
            "objective/score_shaped": _mean(learnt),
            "objective/reward": float(rewards_BT.sum()) / max(len(scored), 1),
            "value/explained_variance": explained_variance(taken),
            "value/mean": float(looked.values_BT[looked.mask_BT].mean()) if bool(looked.mask_BT.any()) else 0.0,
            "rollout/length": _mean([len(rollout.ids) for rollout in rollouts]),
            "rollout/eos_fraction": sum(rollout.has_ended for rollout in rollouts) / num,
            "rollout/unique_fraction": len({tuple(rollout.ids) for rollout in rollouts}) / num,
            "rollout/skipped": float(num - len(scored)),
        }
        names = list(rollouts[0].by_source)
        for name in names if len(names) > 1 else ():
            measured[f"score/{name}"] = _mean([s for r in rollouts if (s := r.by_source[name]) is not None])
        return measured

    def _conclude(
        self, update: Update, rollouts: Sequence[Rollout], looked: Looked, measured: dict[str, float]
    ) -> None:
        for name, value in measured.items():
            self._metrics["train"].setdefault(name, []).append(value)
        if self.is_world_process_zero():
            kl_B = ((looked.logprobs_BT - looked.ref_logprobs_BT) * looked.mask_BT).sum(-1).tolist()
            known_B = [None if one.score is None else kl for one, kl in zip(rollouts, kl_B, strict=True)]
            self.on_rollout(update.number + 1, rollouts, known_B)
        self._heed(self.health.look(measured), f"update {update.number + 1}")

    def _heed(self, signs: Sequence[str], when: str) -> None:
        if self.ppo.health is OnSign.off:
            return
        for sign in signs:
            if self.ppo.health is OnSign.stop:
                raise TrainingError(f"{when}: {sign} (ppo.health=stop)")
            logger.warning("%s: %s", when, sign)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            gathered, self._metrics["train"] = self._metrics["train"], defaultdict(list)
            rest = {key: value for key, value in logs.items() if key != "loss"}
            logs = {name: _mean(values) for name, values in gathered.items()} | rest
        super().log(logs, *args, **kwargs)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Answer and score the held-out prompts: mean score with its standard error, KL and length."""
        self.policy.train(False)
        sampling = at(self.sampler.sampling, 0.0)  # the same throughout, or scores could not be compared
        asked = [(place, 0) for place in range(len(self.held_out))]
        rollouts = self._answers(self.held_out, asked, of="evaluation", sampling=sampling)
        _with_a_score(rollouts, "the held-out prompts")
        scored = [rollout.score for rollout in rollouts if rollout.score is not None]
        metrics = {
            "score": _mean(scored),
            "score_se": _std(scored) / math.sqrt(max(len(scored), 1)),
            "kl": self._held_out_kl(rollouts, temperature_of(sampling)),
            "length": _mean([len(rollout.ids) for rollout in rollouts]),
            "eos_fraction": sum(rollout.has_ended for rollout in rollouts) / len(rollouts),
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._heed(
            self.health.look_at_evaluation(metrics[f"{metric_key_prefix}_score"]), f"update {self.state.global_step}"
        )
        return metrics

    @torch.no_grad()
    def _held_out_kl(self, rollouts: Sequence[Rollout], temperature: float) -> float:
        size, total = self.args.per_device_train_batch_size, torch.zeros((), device=self.args.device)
        order = sorted(range(len(rollouts)), key=lambda place: -len(rollouts[place].ids))
        share = order[self.args.process_index :: self.args.world_size]
        for start in range(0, len(share), size):
            rows = self.rows_of(rollouts, share[start : start + size], self.held_out)
            with self.accelerator.autocast():
                logprobs_BT = self.policy.logprobs(rows, temperature=temperature)
                ref_BT = self.policy.reference_logprobs(rows, temperature=temperature)
            total += ((logprobs_BT - ref_BT) * rows.mask_BT).sum()
        return float(self.sum_of_all(total)) / max(len(rollouts), 1)


def _with_a_score(rollouts: list[Rollout], what: str) -> list[Rollout]:
    """The rollouts, of which one at least must have a score: a mean of none would be made up."""
    if all(rollout.score is None for rollout in rollouts):
        raise RewardError(f"{what}: the reward failed on all {len(rollouts)} completions; the first failure is above")
    return rollouts


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _std(values: Sequence[float]) -> float:
    """Of a sample: n − 1 in the denominator."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
