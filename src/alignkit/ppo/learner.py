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

from alignkit.choices import KlAs
from alignkit.config import PpoConfig, SamplingConfig, ValueConfig
from alignkit.data.sets.prompts import Prompt
from alignkit.estimators import estimator_of
from alignkit.ppo.experience import RolloutTensors, experience
from alignkit.ppo.freed_memory import FreedMemory
from alignkit.ppo.loss import ValueLoss, entropy_bonus, kl_loss, loss_divisors, policy_loss, value_loss
from alignkit.ppo.policy import Policy
from alignkit.ppo.policy_trainer import PolicyTrainer
from alignkit.ppo.rollout import Rollout
from alignkit.ppo.schedule import minibatches
from alignkit.ppo.scoring import Sequences, pad_sequences
from alignkit.ppo.sharded import is_sharded

_TOLD = ("logprobs_BT", "entropies_BT")  # what the policy says of a rollout
# What is summed over the pieces of a minibatch.
_SUMMED = ("policy", "value", "kl", "entropy", "approx_kl", "policy_clipped", "value_clipped")


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
        ppo: the section, settled.
        value: the section.
        args: upstream's arguments, whose steps are updates.
        tokenizer: of the policy.
        callbacks: as upstream.
        compares: ln π_old is compared with what others say of the tokens before anything is learned.
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
        compares: bool,
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
        self.estimator = estimator_of(ppo)
        self.has_kl_loss = ppo.kl_as is not KlAs.reward and policy.has_reference
        # The only pass of an update sees the policy that drew: it tells ln π_old itself, unless a reward needs that.
        one_pass = ppo.num_ppo_epochs == ppo.num_mini_batches == 1
        in_reward = self.estimator.has_critic or (policy.has_reference and not self.has_kl_loss)
        self.learns_in_one_pass = one_pass and not in_reward and not compares
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self._freed = FreedMemory(self.args.device)

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
        self,
        model: nn.Module,
        rows: Sequences,
        scores: Sequence[float | None],
        update: Update,
        *,
        in_loss: Sequence[bool],
    ) -> RolloutTensors:
        """Compute log-probabilities, values and advantages of the whole rollout, on every process.

        The rows are batched as in the first pass of the update, so that its first minibatch sees the very numbers that
        were kept here: the ratio of the two policies, which are one, is then 1 and not nearly 1. Where that minibatch
        is all of the update, it fills in the policy's log-probabilities and entropies, which are 0 until then.

        Args:
            model: the policy, as upstream wrapped it.
            rows: the rollout.
            scores: to learn from, one for each row; None leaves a row out.
            update: its temperature, its β and its number.
            in_loss: false leaves a row out of the loss, but not out of its group.
        """
        model.eval()
        names = [] if self.learns_in_one_pass else ["logprobs_BT", "entropies_BT"]
        names += ["values_BT"] if self.estimator.has_critic else []
        names += ["ref_logprobs_BT"] if self.policy.has_reference else []
        own = {name: torch.zeros(rows.mask_BT.shape, device=self.args.device) for name in names}
        for minibatch in self._minibatches(rows, update, epoch=0):
            for indices in self._pieces(minibatch):
                piece, found = rows.take(indices), dict[str, Any]()
                with torch.no_grad():
                    if not self.learns_in_one_pass:
                        logprobs_BT, entropies_BT, values_BT = model(piece, update.temperature)
                        found |= {"logprobs_BT": logprobs_BT, "entropies_BT": entropies_BT, "values_BT": values_BT}
                    if self.policy.has_reference:
                        with self.computing():
                            found["ref_logprobs_BT"] = self.policy.reference_logprobs(
                                piece, temperature=update.temperature
                            )
                width = piece.mask_BT.shape[1]
                for name, kept_BT in own.items():
                    kept_BT[indices, :width] = found[name].float().masked_fill(~piece.mask_BT, 0.0)
        has_score_B = torch.tensor([score is not None for score in scores], device=self.args.device)
        mask_BT = rows.mask_BT & has_score_B[:, None]
        # each row was filled by one process and is 0 on the others: the sum adds nothing to it
        kept = {name: self.sum_of_all(tensor) for name, tensor in own.items()}
        if self.learns_in_one_pass:
            kept |= {name: torch.zeros_like(rows.mask_BT, dtype=torch.float32) for name in _TOLD}
        return experience(
            torch.tensor([score or 0.0 for score in scores], device=self.args.device),
            mask_BT,
            trained_BT=mask_BT & torch.tensor(in_loss, device=self.args.device)[:, None],
            logprobs_BT=kept["logprobs_BT"],
            ref_logprobs_BT=kept.get("ref_logprobs_BT"),
            entropies_BT=kept["entropies_BT"],
            values_BT=kept.get("values_BT"),
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
            Losses and their metrics, averaged over the optimizer steps. Where there is one pass alone, the policy's
            log-probabilities and entropies are filled in.
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
        if self.learns_in_one_pass:
            for name in _TOLD:
                getattr(tensors, name).copy_(self.sum_of_all(getattr(tensors, name)))
        means = dict(zip(_SUMMED, self.sum_of_all(torch.stack(steps).mean(0)).tolist(), strict=True))
        ratio_max = float(self.accelerator.gather(torch.tensor([ratio_max], device=self.args.device)).max())
        found = {
            "loss/policy": means["policy"],
            "loss/total": self._total(means["policy"], means["value"], means["kl"], means["entropy"], update),
            "policy/approx_kl": means["approx_kl"],
            "policy/clip_fraction": means["policy_clipped"],
            "policy/ratio_max": ratio_max,
            "optimizer_steps": float(num_steps),
        }
        if self.estimator.has_critic:
            found |= {"loss/value": means["value"], "value/clip_fraction": means["value_clipped"]}
        return found | ({"loss/kl": means["kl"]} if self.has_kl_loss else {})

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
        num_tokens = max(1, int(tensors.trained_BT[minibatch].sum()))
        divisors_B = torch.ones(len(tensors.trained_BT), dtype=torch.long, device=self.args.device)
        assert self.ppo.loss_over is not None
        divisors_B[minibatch] = loss_divisors(
            tensors.trained_BT[minibatch], self.ppo.loss_over, max_new_tokens=self.sampling.max_new_tokens
        )
        pieces = list(self._pieces(minibatch))
        summed = torch.zeros(len(_SUMMED), device=self.args.device)
        ratio_max = 0.0
        self.policy.detach_values = self.value.detach or not update.trains_policy
        for number, indices in enumerate(pieces):
            # sharded gradients are added up piece by piece: left unsynchronized they would be whole in every process
            syncs = number == len(pieces) - 1 or is_sharded(self.policy)
            with nullcontext() if syncs else self.accelerator.no_sync(model):
                loss, parts, largest = self._losses(
                    model, rows.take(indices), tensors, indices, num_tokens, divisors_B[indices], update
                )
                # data parallelism averages the gradients of its processes, and the divisors are those of all
                self.accelerator.backward(loss * self.args.world_size)
            self._freed.give_back()
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
        divisors_B: Tensor,
        update: Update,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of a piece of a minibatch with its gradient, its parts by `_SUMMED`, and its largest ratio."""
        columns = slice(0, piece.mask_BT.shape[1])
        mask_BT = tensors.trained_BT[indices, columns]
        logprobs_BT, entropies_BT, values_BT = model(piece, update.temperature)
        if self.learns_in_one_pass:
            for name, found_BT in zip(_TOLD, (logprobs_BT, entropies_BT), strict=True):
                getattr(tensors, name)[indices, columns] = found_BT.detach().float().masked_fill(~piece.mask_BT, 0.0)
        old_logprobs_BT = tensors.logprobs_BT[indices, columns]
        policy = policy_loss(
            logprobs_BT,
            old_logprobs_BT,
            tensors.advantages_BT[indices, columns],
            mask_BT,
            clip_range=self.ppo.clip_range,
            num_tokens=num_tokens,
            divisors_B=divisors_B,
            clip_range_high=self.ppo.clip_range_high,
            dual_clip=self.ppo.dual_clip,
            ratio_over=self.ppo.ratio_over,
        )
        nothing = torch.zeros((), device=self.args.device)
        value, kl = ValueLoss(nothing, nothing), nothing
        if tensors.values_BT is not None and tensors.returns_BT is not None:
            value = value_loss(
                values_BT,
                tensors.values_BT[indices, columns],
                tensors.returns_BT[indices, columns],
                mask_BT,
                clip_range=self.ppo.clip_range_value or math.inf,
                num_tokens=num_tokens,
            )
        if self.has_kl_loss and tensors.ref_logprobs_BT is not None:
            kl = kl_loss(
                logprobs_BT,
                tensors.ref_logprobs_BT[indices, columns],
                mask_BT,
                divisors_B=divisors_B,
                old_logprobs_BT=old_logprobs_BT if self.ppo.kl_as is KlAs.loss_unbiased else None,
            )
        entropy = entropy_bonus(entropies_BT, mask_BT, num_tokens=num_tokens)
        trains = float(update.trains_policy)  # 0 keeps the policy in the graph, which several processes wait for
        loss: Tensor = self._total(trains * policy.loss, value.loss, trains * kl, entropy, update)
        parts = (policy.loss, value.loss, kl, entropy, policy.approx_kl, policy.clip_fraction, value.clip_fraction)
        return loss, torch.stack([part.detach().float() for part in parts]), policy.ratio_max

    def _total(self, policy: Any, value: Any, kl: Any, entropy: Any, update: Update) -> Any:
        total = policy + self.ppo.vf_coef * value if self.ppo.vf_coef is not None else policy
        total = total + update.kl_coef * kl if self.has_kl_loss else total
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
