"""From a scored rollout to optimizer steps: what PPO learns, minibatch by minibatch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignkit.config import PpoConfig, SamplingConfig, ValueConfig
from alignkit.data.sets.prompts import Prompt
from alignkit.ppo.experience import Experience, Looked, empty
from alignkit.ppo.loss import entropy_bonus, policy_loss, value_loss
from alignkit.ppo.policy_trainer import PolicyTrainer
from alignkit.ppo.rollout import Rollout, Sampler
from alignkit.ppo.schedule import minibatches
from alignkit.ppo.scoring import Sequences, side_by_side

# What is summed over the pieces of a minibatch.
_SUMMED = ("policy", "value", "entropy", "approx_kl", "policy_clipped", "value_clipped")


@dataclass(frozen=True, slots=True)
class Update:
    """What differs between updates.

    Attributes:
        number: counted from 0.
        sampling: as it is in this update; its temperature is that of the log-probabilities.
        kl_coef: β.
        trains_policy: False while the value head warms up alone.
    """

    number: int
    sampling: SamplingConfig
    kl_coef: float
    trains_policy: bool

    @property
    def temperature(self) -> float:
        return temperature_of(self.sampling)


class Learner(PolicyTrainer):
    """Looks at a rollout under policy, value head and reference, and takes the optimizer steps of an update.

    Args:
        prompts: that rollouts answer.
        sampler: that made them.
        ppo: the section.
        value: the section.
        **rest: as `PolicyTrainer`.
    """

    def __init__(
        self, *, prompts: Sequence[Prompt], sampler: Sampler, ppo: PpoConfig, value: ValueConfig, **rest: Any
    ) -> None:
        super().__init__(num_updates=ppo.num_updates, value_rate=value.learning_rate, **rest)
        self.prompts, self.sampler, self.ppo, self.value = prompts, sampler, ppo, value

    def look(self, model: nn.Module, rollouts: Sequence[Rollout], update: Update) -> Looked:
        """Log-probabilities, values and the reference's log-probabilities of the whole rollout, on every process.

        The rows are batched as in the first pass of the update, so that its first minibatch sees the very numbers that
        were kept here: the ratio of the two policies, which are one, is then 1 and not nearly 1.
        """
        model.eval()
        device, length = self.args.device, max(1, *(len(rollout.ids) for rollout in rollouts))
        tensors = {name: empty(len(rollouts), length, device=device) for name in ("policy", "ref", "values", "entropy")}
        for minibatch in self._minibatches(rollouts, update, epoch=0):
            for places in self._pieces(minibatch):
                rows = self.rows_of(rollouts, places)
                width = rows.mask_BT.shape[1]
                with torch.no_grad():
                    logprobs_BT, entropies_BT, values_BT = model(rows, update.temperature)
                    with self.accelerator.autocast():
                        ref_BT = self.policy.reference_logprobs(rows, temperature=update.temperature)
                found = {"policy": logprobs_BT, "ref": ref_BT, "values": values_BT, "entropy": entropies_BT}
                for name, found_BT in found.items():
                    tensors[name][places, :width] = found_BT.float().masked_fill(~rows.mask_BT, 0.0)
        # each row was filled by one process and is 0 on the others: the sum adds nothing to it
        whole = {name: self.sum_of_all(tensor) for name, tensor in tensors.items()}
        mask_BT = (
            torch.arange(length, device=device)
            < torch.tensor([0 if rollout.score is None else len(rollout.ids) for rollout in rollouts], device=device)[
                :, None
            ]
        )
        return Looked(whole["policy"], whole["ref"], whole["values"], whole["entropy"], mask_BT)

    def learn(
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
                so_far = self.sum_of_all(torch.stack(steps[before:]).mean(0))
                if float(so_far[_SUMMED.index("approx_kl")]) > self.ppo.target_kl:
                    break
        means = dict(zip(_SUMMED, self.sum_of_all(torch.stack(steps).mean(0)).tolist(), strict=True))
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
            rows = self.rows_of(rollouts, places)
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
                    clip_range=self.ppo.clip_range_value or math.inf,
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
            for weight in self.policy.policy_weights():
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

    def rows_of(
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


def temperature_of(sampling: SamplingConfig) -> float:
    """What the logits are divided by; 1 where the section leaves it open."""
    return float(sampling.temperature or 1.0)
