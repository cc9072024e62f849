"""From a scored rollout to optimizer steps: what PPO learns, minibatch by minibatch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from alignkit.config import PpoConfig, SamplingConfig, ValueConfig
from alignkit.data.sets.prompts import Prompt
from alignkit.ppo.experience import RolloutTensors, experience
from alignkit.ppo.loss import entropy_bonus, policy_loss, value_loss
from alignkit.ppo.policy import Policy
from alignkit.ppo.policy_trainer import PolicyTrainer
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.schedule import minibatches
from alignkit.ppo.scoring import Sequences, pad_sequences

# What is summed over the pieces of a minibatch.
_SUMMED = ("policy", "value", "entropy", "approx_kl", "policy_clipped", "value_clipped")


@dataclass(frozen=True, slots=True)
class Update:
    """The settings of one update, of those that differ between updates.

    Attributes:
        number: counted from 0.
        sampling: without schedules; its temperature is that of the log-probabilities.
        kl_coef: β, the KL penalty coefficient.
        trains_policy: False while the value function warms up alone.
    """

    number: int
    sampling: SamplingConfig
    kl_coef: float
    trains_policy: bool

    @property
    def temperature(self) -> float:
        return temperature_of(self.sampling)


class Learner(PolicyTrainer):
    """Scores a rollout under policy, value function and reference, and takes the optimizer steps of an update.

    Args:
        policy: model, value function and reference.
        prompts: to learn on.
        held_out: to evaluate on; empty where none are.
        sampling: the section; what moves in it moves over the updates.
        ppo: the section.
        value: the section.
        args: upstream's arguments, whose steps are updates.
        tokenizer: of the policy.
        callbacks: as upstream.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt],
        sampling: SamplingConfig,
        ppo: PpoConfig,
        value: ValueConfig,
        args: TrainingArguments,
        tokenizer: PreTrainedTokenizerBase,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        super().__init__(
            policy=policy,
            num_updates=ppo.num_updates,
            value_learning_rate=value.learning_rate,
            row_sources=[prompt.source for prompt in prompts],
            eval_dataset=list(held_out) or None,
            args=args,
            tokenizer=tokenizer,
            callbacks=callbacks,
        )
        self.prompts, self.held_out, self.sampling, self.ppo, self.value = prompts, held_out, sampling, ppo, value
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def pad(self, rollouts: Sequence[Rollout], prompts: Sequence[Prompt]) -> Sequences:
        """Put all rows of a rollout into one batch; each forward pass takes a few of them.

        Args:
            rollouts: completions.
            prompts: all of those that were completed.
        """
        return pad_sequences(
            [prompts[rollout.prompt].ids for rollout in rollouts],
            [rollout.ids for rollout in rollouts],
            pad_id=self.pad_id,
            min_new_tokens=self.sampling.min_new_tokens,
            device=self.args.device,
        )

    def score_rollouts(
        self, model: nn.Module, rows: Sequences, scores: Sequence[float | None], update: Update
    ) -> RolloutTensors:
        """Compute log-probabilities, values and advantages of the whole rollout, on every process.

        The rows are batched as in the first pass of the update, so that its first minibatch sees the very numbers that
        were kept here: the ratio of the two policies, which are one, is then 1 and not nearly 1.

        Args:
            model: the policy, as upstream wrapped it.
            rows: the rollout.
            scores: to learn from, one for each row; None leaves a row out.
            update: its temperature, its β and its number.
        """
        model.eval()
        names = ("logprobs_BT", "ref_logprobs_BT", "values_BT", "entropies_BT")
        own = {name: torch.zeros(rows.mask_BT.shape, device=self.args.device) for name in names}
        for minibatch in self._minibatches(rows, update, epoch=0):
            for indices in self._pieces(minibatch):
                piece = rows.take(indices)
                with torch.no_grad():
                    logprobs_BT, entropies_BT, values_BT = model(piece, update.temperature)
                    with self.accelerator.autocast():
                        ref_BT = self.policy.reference_logprobs(piece, temperature=update.temperature)
                width = piece.mask_BT.shape[1]
                for name, found_BT in zip(names, (logprobs_BT, ref_BT, values_BT, entropies_BT), strict=True):
                    own[name][indices, :width] = found_BT.float().masked_fill(~piece.mask_BT, 0.0)
        has_score_B = torch.tensor([score is not None for score in scores], device=self.args.device)
        return experience(
            torch.tensor([score or 0.0 for score in scores], device=self.args.device),
            rows.mask_BT & has_score_B[:, None],
            # each row was filled by one process and is 0 on the others: the sum adds nothing to it
            **{name: self.sum_of_all(tensor) for name, tensor in own.items()},
            ppo=self.ppo,
            kl_coef=update.kl_coef,
        )

    def learn(
        self,
        model: nn.Module,
        rollouts: Sequence[Rollout],
        rows: Sequences,
        tensors: RolloutTensors,
        update: Update,
    ) -> dict[str, float]:
        """Make every pass over the rollout, and take all of its optimizer steps but the last one.

        Args:
            model: the policy, as upstream wrapped it.
            rollouts: what is learned from.
            rows: the same, padded.
            tensors: the same, scored.
            update: the settings as they are now.

        Returns:
            Losses and their metrics, averaged over the optimizer steps.
        """
        model.train()  # for what recomputes activations; dropout stays off
        steps: list[Tensor] = []
        ratio_max, num_steps = 0.0, 0
        for epoch in range(self.ppo.num_ppo_epochs):
            before = len(steps)
            for minibatch in self._minibatches(rows, update, epoch=epoch):
                if num_steps:
                    self._optimizer_step(model)
                summed, largest = self._minibatch(model, rollouts, rows, tensors, minibatch, update)
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
        self,
        model: nn.Module,
        rollouts: Sequence[Rollout],
        rows: Sequences,
        tensors: RolloutTensors,
        minibatch: list[int],
        update: Update,
    ) -> tuple[Tensor, float]:
        """Run this process's pieces forward and backward; the sums of `_SUMMED` and the largest ratio."""
        num_tokens = max(1, int(tensors.mask_BT[minibatch].sum()))
        pieces = list(self._pieces(minibatch))
        summed = torch.zeros(len(_SUMMED), device=self.args.device)
        ratio_max = 0.0
        self.policy.detach_values = self.value.detach or not update.trains_policy
        for number, indices in enumerate(pieces):
            is_last = number == len(pieces) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                loss, parts, largest = self._losses(model, rows.take(indices), tensors, indices, num_tokens, update)
                # data parallelism averages the gradients of its processes, and num_tokens counts those of all
                self.accelerator.backward(loss * self.args.world_size)
            summed += parts
            ratio_max = max(ratio_max, float(largest))
            self._batches.append((loss.detach(), [rollouts[index].prompt for index in indices]))
        if not update.trains_policy:  # zero gradients would still move Adam's average and decay weights
            for weight in self.policy.policy_weights():
                weight.grad = None
        return summed, ratio_max

    def _losses(
        self,
        model: nn.Module,
        piece: Sequences,
        tensors: RolloutTensors,
        indices: list[int],
        num_tokens: int,
        update: Update,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of a piece of a minibatch with its gradient, its parts by `_SUMMED`, and its largest ratio."""
        columns = slice(0, piece.mask_BT.shape[1])
        mask_BT = tensors.mask_BT[indices, columns]
        logprobs_BT, entropies_BT, values_BT = model(piece, update.temperature)
        policy = policy_loss(
            logprobs_BT,
            tensors.logprobs_BT[indices, columns],
            tensors.advantages_BT[indices, columns],
            mask_BT,
            clip_range=self.ppo.clip_range,
            num_tokens=num_tokens,
        )
        value = value_loss(
            values_BT,
            tensors.values_BT[indices, columns],
            tensors.returns_BT[indices, columns],
            mask_BT,
            clip_range=self.ppo.clip_range_value or math.inf,
            num_tokens=num_tokens,
        )
        entropy = entropy_bonus(entropies_BT, mask_BT, num_tokens=num_tokens)
        loss: Tensor = self._total(policy.loss if update.trains_policy else 0.0 * policy.loss, value.loss, entropy)
        parts = (policy.loss, value.loss, entropy, policy.approx_kl, policy.clip_fraction, value.clip_fraction)
        return loss, torch.stack([part.detach().float() for part in parts]), policy.ratio_max

    def _total(self, policy: Any, value: Any, entropy: Any) -> Any:
        total = policy + self.ppo.vf_coef * value
        return total - self.ppo.entropy_coef * entropy if self.ppo.entropy_coef else total

    def _optimizer_step(self, model: nn.Module) -> None:
        """Take a step as upstream takes the last one of an update."""
        clip: Any = self._clip_grad_norm
        norm = clip(model) if self.args.max_grad_norm > 0 else None
        self._get_grad_norm(model, grad_norm=norm)  # checks that all is finite
        assert self.optimizer is not None
        self.optimizer.step()
        model.zero_grad()

    def _minibatches(self, rows: Sequences, update: Update, *, epoch: int) -> list[list[int]]:
        return minibatches(
            [sum(lengths) for lengths in zip(rows.prompt_lengths, rows.completion_lengths, strict=True)],
            num_mini_batches=self.ppo.num_mini_batches,
            update=update.number,
            epoch=epoch,
            seed=self.args.seed,
        )

    def _pieces(self, minibatch: list[int]) -> Iterator[list[int]]:
        """Cut this process's share of a minibatch into forward passes."""
        share, size = minibatch[self.args.process_index :: self.args.world_size], self.args.per_device_train_batch_size
        return (share[start : start + size] for start in range(0, len(share), size))


def temperature_of(sampling: SamplingConfig) -> float:
    """Return what the logits are divided by; 1 where the section leaves it open."""
    return float(sampling.temperature or 1.0)
