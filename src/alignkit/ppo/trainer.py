"""PPO on transformers' trainer: one of its steps is one update, a rollout and the optimizer steps that follow it.

So everything it counts (`eval_steps`, `save_steps`, the learning rate's schedule) counts updates, and a checkpoint
always lies between two rollouts. Each draw is a function of the seed and of what it is for: a resumed run has no random
state to restore.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alignkit.config import Health as OnSign
from alignkit.config import PpoConfig, ValueConfig
from alignkit.data.prompts import Prompt
from alignkit.errors import RewardError, TrainingError
from alignkit.ppo.experience import (
    Experience,
    Looked,
    empty,
    experience,
    explained_variance,
    kl_and_entropy,
)
from alignkit.ppo.health import Health
from alignkit.ppo.kl import KLController
from alignkit.ppo.loss import entropy_bonus, policy_loss, value_loss
from alignkit.ppo.policy import Policy
from alignkit.ppo.rewards import Rewards
from alignkit.ppo.rollout import Rollout, Sampler, score
from alignkit.ppo.schedule import linear, minibatches, prompts_of_update
from alignkit.ppo.scoring import Sequences, side_by_side
from alignkit.ppo.shaping import Shaping
from alignkit.training import checkpoints
from alignkit.training.durable import DurableTrainer

logger = logging.getLogger(__name__)

STATE = "ppo_state.json"
# What is summed over the pieces of a minibatch.
_SUMMED = ("policy", "value", "entropy", "approx_kl", "policy_clipped", "value_clipped")


@dataclass(frozen=True, slots=True)
class Update:
    """What differs between updates.

    Attributes:
        number: counted from 0.
        temperature: of sampling and of the log-probabilities.
        kl_coef: β.
        trains_policy: False while the value head warms up alone.
    """

    number: int
    temperature: float
    kl_coef: float
    trains_policy: bool


class PpoTrainer(DurableTrainer):
    """Proximal policy optimisation (Schulman et al. 2017) of a language model against any reward.

    Args:
        policy: model, value head and reference.
        prompts: to learn on.
        held_out: to evaluate on; empty where none are.
        sampler: answers prompts.
        rewards: scores answers.
        ppo: the section.
        value: the section.
        shuffle: prompts are asked in a fresh order each time round.
        on_rollout: told (update counted from 1, rollouts, KL of each) after each update, on the main process.
        **rest: as `DurableTrainer`.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        sampler: Sampler,
        rewards: Rewards,
        ppo: PpoConfig,
        value: ValueConfig,
        shuffle: bool,
        on_rollout: Callable[[int, Sequence[Rollout], Sequence[float]], None],
        **rest: Any,
    ) -> None:
        super().__init__(
            model=policy,
            train_dataset=list(range(ppo.num_updates)),
            eval_dataset=list(held_out) or None,
            data_collator=lambda numbers: {"update": numbers[0]},
            row_sources=[prompt.source for prompt in prompts],
            **rest,
        )
        self.policy, self.prompts, self.held_out = policy, prompts, held_out
        self.sampler, self.rewards, self.ppo, self.value = sampler, rewards, ppo, value
        self.shuffle, self.on_rollout = shuffle, on_rollout
        self.controller = KLController(ppo.kl_coef, ppo.kl_target, ppo.kl_horizon)
        self.shaping = Shaping(ppo)
        self.health = Health(ppo.max_kl, sampler.sampling.max_new_tokens)
        self.num_skipped = 0
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}

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
            looked = self._look(model, rollouts, update)
            shaped = self.shaping([rollout.score for rollout in rollouts], [r.has_ended for r in rollouts])
            scores_B = torch.tensor([value or 0.0 for value in shaped], device=self.args.device)
            taken, rewards_BT = experience(looked, scores_B, self.ppo, kl_coef=update.kl_coef)
        with self._timed("update") as update_time:
            losses = self._learn(model, rollouts, taken, update)
        measured = kl_and_entropy(looked) | losses
        measured |= self._measured(rollouts, looked, taken, rewards_BT, shaped)
        measured |= {"kl_coef": update.kl_coef, "temperature": update.temperature}
        num_drawn = sum(len(rollout.ids) for rollout in rollouts)
        num_fed = num_drawn + sum(len(self.prompts[rollout.prompt].ids) for rollout in rollouts)
        for name, seconds, num_tokens in (
            ("rollout", rollout_time[0], num_drawn),
            ("scoring", scoring_time[0], num_fed),
            ("update", update_time[0], num_fed * self.ppo.num_ppo_epochs),
        ):
            measured |= {f"seconds/{name}": seconds, f"tokens_per_second/{name}": num_tokens / max(seconds, 1e-9)}
        measured["tokens_per_second"] = num_drawn / (rollout_time[0] + scoring_time[0] + update_time[0])
        self.controller.update(measured["objective/kl"], num_rollouts=len(rollouts))
        self._conclude(update, rollouts, looked, measured)
        return torch.tensor(measured["loss/total"], device=self.args.device)

    def _update(self, number: int) -> Update:
        moving = {"update": number, "num_updates": self.ppo.num_updates}
        kl_coef = linear(self.ppo.kl_coef, self.ppo.kl_coef_end, **moving)
        return Update(
            number,
            temperature=linear(self.sampler.sampling.temperature or 1.0, self.ppo.temperature_end, **moving),
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
        asked = [(place, k) for place in dealt for k in range(self.ppo.num_generations)]
        return self._answers(self.prompts, asked, of=f"update {update.number}", temperature=update.temperature)

    def answer(self, prompts: Sequence[Prompt], asked: Sequence[tuple[int, int]]) -> list[Rollout]:
        """Complete and score prompts for a look at them; every process must call this.

        Args:
            prompts: all of them.
            asked: (place of the prompt, generation) of each completion.
        """
        temperature = self.sampler.sampling.temperature or 1.0
        return self._answers(prompts, asked, of="samples", temperature=temperature)

    def _answers(
        self, prompts: Sequence[Prompt], asked: Sequence[tuple[int, int]], *, of: str, temperature: float
    ) -> list[Rollout]:
        share = asked[self.args.process_index :: self.args.world_size]
        rollouts: list[Rollout] = []
        problem: RewardError | None = None
        if share:
            with self.accelerator.autocast():
                rollouts = self.sampler(self.policy.model, prompts, share, of=of, temperature=temperature)
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

    def _look(self, model: nn.Module, rollouts: Sequence[Rollout], update: Update) -> Looked:
        """Log-probabilities, values and the reference's log-probabilities of the whole rollout, on every process.

        The rows are batched as in the first pass of the update, so that its first minibatch sees the very numbers that
        were kept here: the ratio of the two policies, which are one, is then 1 and not nearly 1.
        """
        model.eval()
        device, length = self.args.device, max(1, *(len(rollout.ids) for rollout in rollouts))
        tensors = {name: empty(len(rollouts), length, device=device) for name in ("policy", "ref", "values", "entropy")}
        for minibatch in self._minibatches(rollouts, update, epoch=0):
            for places in self._pieces(minibatch):
                rows = self._rows(rollouts, places)
                width = rows.mask_BT.shape[1]
                with torch.no_grad():
                    logprobs_BT, entropies_BT, values_BT = model(rows, update.temperature)
                    with self.accelerator.autocast():
                        ref_BT = self.policy.reference_logprobs(rows, temperature=update.temperature)
                found = {"policy": logprobs_BT, "ref": ref_BT, "values": values_BT, "entropy": entropies_BT}
                for name, found_BT in found.items():
                    tensors[name][places, :width] = found_BT.float().masked_fill(~rows.mask_BT, 0.0)
        # each row was filled by one process and is 0 on the others: the sum adds nothing to it
        whole = {name: self._sum(tensor) for name, tensor in tensors.items()}
        mask_BT = (
            torch.arange(length, device=device)
            < torch.tensor([0 if rollout.score is None else len(rollout.ids) for rollout in rollouts], device=device)[
                :, None
            ]
        )
        return Looked(whole["policy"], whole["ref"], whole["values"], whole["entropy"], mask_BT)

    def _learn(
        self, model: nn.Module, rollouts: Sequence[Rollout], taken: Experience, update: Update
    ) -> dict[str, float]:
        """Every pass over the rollout; all of its optimizer steps but the last one are taken."""
        model.train()  # for what recomputes activations; dropout stays off
        steps: list[Tensor] = []
        ratio_max, num_steps = 0.0, 0
        for epoch in range(self.ppo.num_ppo_epochs):
            before = len(steps)
            for minibatch in self._minibatches(rollouts, update, epoch=epoch):
                if num_steps:
                    self._optimizer_step(model)
                summed, largest = self._minibatch(model, rollouts, taken, minibatch, update)
                steps.append(summed)
                ratio_max, num_steps = max(ratio_max, largest), num_steps + 1
            if self.ppo.target_kl is not None:
                so_far = self._sum(torch.stack(steps[before:]).mean(0))
                if float(so_far[_SUMMED.index("approx_kl")]) > self.ppo.target_kl:
                    break
        means = dict(zip(_SUMMED, self._sum(torch.stack(steps).mean(0)).tolist(), strict=True))
        ratio_max = float(self.accelerator.gather(torch.tensor([ratio_max], device=self.args.device)).max())
        return {
            "loss/policy": means["policy"],
            "loss/value": means["value"],
            "loss/total": self._total(means["policy"], means["value"], means["entropy"]),
            "policy/approx_kl": means["approx_kl"],
            "policy/clip_fraction": means["policy_clipped"],
            "policy/ratio_max": ratio_max,
            "value/clip_fraction": means["value_clipped"],
            "optimizer_steps": float(num_steps),
        }

    def _minibatch(
        self, model: nn.Module, rollouts: Sequence[Rollout], taken: Experience, minibatch: list[int], update: Update
    ) -> tuple[Tensor, float]:
        """Forward and backward of this process's pieces; the sums of `_SUMMED` and the largest ratio."""
        num_tokens = max(1, int(taken.mask_BT[minibatch].sum()))
        pieces = list(self._pieces(minibatch))
        summed = torch.zeros(len(_SUMMED), device=self.args.device)
        ratio_max = 0.0
        self.policy.detach_values = self.value.detach or not update.trains_policy
        for number, places in enumerate(pieces):
            rows = self._rows(rollouts, places)
            piece = slice(0, rows.mask_BT.shape[1])
            mask_BT = taken.mask_BT[places, piece]
            is_last = number == len(pieces) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                logprobs_BT, entropies_BT, values_BT = model(rows, update.temperature)
                policy = policy_loss(
                    logprobs_BT,
                    taken.old_logprobs_BT[places, piece],
                    taken.advantages_BT[places, piece],
                    mask_BT,
                    clip_range=self.ppo.clip_range,
                    num_tokens=num_tokens,
                )
                value = value_loss(
                    values_BT,
                    taken.old_values_BT[places, piece],
                    taken.returns_BT[places, piece],
                    mask_BT,
                    clip_range=self.ppo.clip_range_value,
                    num_tokens=num_tokens,
                )
                entropy = entropy_bonus(entropies_BT, mask_BT, num_tokens=num_tokens)
                loss = self._total(policy.loss if update.trains_policy else 0.0 * policy.loss, value.loss, entropy)
                # data parallelism averages the gradients of its processes, and num_tokens counts those of all
                self.accelerator.backward(loss * self.args.world_size)
            parts = (policy.loss, value.loss, entropy, policy.approx_kl, policy.clip_fraction, value.clip_fraction)
            summed += torch.stack([part.detach().float() for part in parts])
            ratio_max = max(ratio_max, float(policy.ratio_max))
            self._batches.append((loss.detach(), [rollouts[place].prompt for place in places]))
        if not update.trains_policy:  # zero gradients would still move Adam's average and decay weights
            for name, weight in self.policy.named_parameters():
                if not name.startswith("value_head."):
                    weight.grad = None
        return summed, ratio_max

    def _total(self, policy: Any, value: Any, entropy: Any) -> Any:
        total = policy + self.ppo.vf_coef * value
        return total - self.ppo.entropy_coef * entropy if self.ppo.entropy_coef else total

    def _optimizer_step(self, model: nn.Module) -> None:
        """As upstream takes the last one of an update."""
        clip: Any = self._clip_grad_norm
        norm = clip(model) if self.args.max_grad_norm > 0 else None
        self._get_grad_norm(model, grad_norm=norm)  # looks whether all is finite
        assert self.optimizer is not None
        self.optimizer.step()
        model.zero_grad()

    # Its parts

    def _minibatches(self, rollouts: Sequence[Rollout], update: Update, *, epoch: int) -> list[list[int]]:
        lengths = [len(self.prompts[rollout.prompt].ids) + len(rollout.ids) for rollout in rollouts]
        return minibatches(
            lengths,
            num_mini_batches=self.ppo.num_mini_batches,
            update=update.number,
            epoch=epoch,
            seed=self.args.seed,
        )

    def _pieces(self, minibatch: list[int]) -> Iterator[list[int]]:
        """This process's share of a minibatch, a forward pass at a time."""
        share, size = minibatch[self.args.process_index :: self.args.world_size], self.args.per_device_train_batch_size
        return (share[start : start + size] for start in range(0, len(share), size))

    def _rows(
        self, rollouts: Sequence[Rollout], places: Sequence[int], prompts: Sequence[Prompt] | None = None
    ) -> Sequences:
        prompts = self.prompts if prompts is None else prompts
        return side_by_side(
            [prompts[rollouts[place].prompt].ids for place in places],
            [rollouts[place].ids for place in places],
            pad_id=int(self.sampler.tokenizer.pad_token_id or 0),
            min_new_tokens=self.sampler.sampling.min_new_tokens,
            device=self.args.device,
        )

    def _sum(self, tensor: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum") if self.args.world_size > 1 else tensor
        return total

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
            self.on_rollout(update.number + 1, rollouts, kl_B)
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
        temperature = self.sampler.sampling.temperature or 1.0
        asked = [(place, 0) for place in range(len(self.held_out))]
        rollouts = self._answers(self.held_out, asked, of="evaluation", temperature=temperature)
        scored = [rollout.score for rollout in rollouts if rollout.score is not None]
        metrics = {
            "score": _mean(scored),
            "score_se": _std(scored) / math.sqrt(max(len(scored), 1)),
            "kl": self._held_out_kl(rollouts, temperature),
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
            rows = self._rows(rollouts, share[start : start + size], self.held_out)
            with self.accelerator.autocast():
                logprobs_BT, _, _ = self.policy(rows, temperature)
                ref_BT = self.policy.reference_logprobs(rows, temperature=temperature)
            total += ((logprobs_BT - ref_BT) * rows.mask_BT).sum()
        return float(self._sum(total)) / max(len(rollouts), 1)

    # What upstream asks of a trainer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The numbers of the updates, the same on every process."""
        numbers: Any = self.train_dataset
        return DataLoader(numbers, batch_size=1, shuffle=False, collate_fn=self.data_collator)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_class, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.policy)  # type: ignore[arg-type]  # a module
            decaying = set(self.get_decay_parameter_names(self.policy))
            groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "value": []}
            for name, weight in self.policy.named_parameters():
                if weight.requires_grad:
                    is_value = name.startswith("value_head.")
                    groups["value" if is_value else "decay" if name in decaying else "plain"].append(weight)
            value_rate = {"lr": self.value.learning_rate} if self.value.learning_rate is not None else {}
            self.optimizer = optimizer_class(
                [
                    {"params": groups["decay"], "weight_decay": self.args.weight_decay},
                    {"params": groups["plain"], "weight_decay": 0.0},
                    {"params": groups["value"], "weight_decay": 0.0, **value_rate},
                ],
                **arguments,
            )
        return self.optimizer

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # upstream's count knows one forward and backward pass a step

    def num_parameters(self) -> tuple[int, int]:
        """All weights of policy and value head, and those that train."""
        weights = [*self.policy.model.parameters(), *self.policy.value_head.parameters()]
        return sum(w.numel() for w in weights), sum(w.numel() for w in weights if w.requires_grad)

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.save(folder, is_main_process=True)
        (folder / "training_args.json").write_text(self.args.to_json_string() + "\n")
        (folder / STATE).write_text(json.dumps(self._state()) + "\n")

    def _state(self) -> dict[str, Any]:
        return {
            "controller": self.controller.state_dict(),
            "shaping": self.shaping.state_dict(),
            "health": self.health.state_dict(),
            "num_skipped": self.num_skipped,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._load_weights(Path(resume_from_checkpoint))
        state = json.loads((Path(resume_from_checkpoint) / STATE).read_text())
        self.controller.load_state_dict(state["controller"])
        self.shaping.load_state_dict(state["shaping"])
        self.health.load_state_dict(state["health"])
        self.num_skipped = state["num_skipped"]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        pass  # a sealed checkpoint lacks nothing but the second name of weights that are tied

    def _load_weights(self, folder: Path) -> None:
        super()._load_from_checkpoint(str(folder), self.policy.model)
        self.policy.value_head.load(folder)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if problem := checkpoints.damage(best):
            raise TrainingError(f"the best checkpoint, {best}, cannot be trusted: {problem}")
        self._load_weights(best)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _std(values: Sequence[float]) -> float:
    """Of a sample: n − 1 in the denominator."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
