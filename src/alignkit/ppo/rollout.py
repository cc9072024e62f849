"""Completions of prompts by the policy as it is now, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from alignkit.config import SamplingConfig
from alignkit.data.rows.conversation import Message
from alignkit.data.sets.prompts import Prompt
from alignkit.rewards.reply import ReplyDecoder
from alignkit.rewards.sample import Sample
from alignkit.rewards.weighted import Rewards
from alignkit.sampling.generate import Completion, generate


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt.

    Attributes:
        prompt: its index among the prompts.
        generation: which of its completions this is, counted from 0.
        ids: the drawn tokens, the end token included where there is one.
        text: as functions read it.
        has_ended: by an end token, not by `max_new_tokens`.
        reply: as a message, where it has reasoning or calls.
        score: the weighted sum over the reward sources; None where a source skipped it.
        by_source: score of each source, unweighted.
        unscored: why it has no score; None where it has one.
        logprobs: of the drawn tokens, as an engine that drew them told; empty without one.
    """

    prompt: int
    generation: int
    ids: list[int]
    text: str
    has_ended: bool
    reply: Message | None = None
    score: float | None = None
    by_source: dict[str, float | None] = field(default_factory=dict)
    unscored: str | None = None
    logprobs: list[float] = field(default_factory=list)


class Completer(Protocol):
    """Completes prompts with the policy as it is now, such as `ppo.engine.Engine`."""

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        requests: Sequence[tuple[int, int]],
        sampling: SamplingConfig,
        *,
        draw_stream: str,
    ) -> list[Completion]: ...


@dataclass(frozen=True)
class RolloutGenerator:
    """Completes prompts.

    Attributes:
        tokenizer: of the policy.
        eos_ids: the tokens that end a completion.
        replies: reads completions.
        seed: of every draw.
        batch_size: most completions that are generated together.
        engine: completes prompts in place of the model that is here; None without one.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    replies: ReplyDecoder
    seed: int
    batch_size: int
    engine: Completer | None = None

    def __call__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        requests: Sequence[tuple[int, int]],
        *,
        draw_stream: str,
        sampling: SamplingConfig,
    ) -> list[Rollout]:
        """Complete prompts.

        What a completion draws is a function of (seed, `draw_stream`, prompt, generation): neither the process nor the
        batch it is generated in matters.

        Args:
            model: the policy.
            prompts: all of them.
            requests: (index of the prompt, generation) of each completion.
            draw_stream: what the draws belong to, such as the number of the update.
            sampling: the section as it is now, without schedules.
        """
        rows = [prompts[index].ids for index, _ in requests]
        if self.engine is not None:
            completions = self.engine.complete(rows, requests, sampling, draw_stream=draw_stream)
        else:
            completions = self._generate(model, rows, requests, draw_stream=draw_stream, sampling=sampling)
        return [
            self._rollout(prompts[index], index, generation, completion)
            for (index, generation), completion in zip(requests, completions, strict=True)
        ]

    def _generate(
        self,
        model: Any,
        rows: Sequence[list[int]],
        requests: Sequence[tuple[int, int]],
        *,
        draw_stream: str,
        sampling: SamplingConfig,
    ) -> list[Completion]:
        return generate(
            model,
            rows,
            sampling,
            eos_ids=self.eos_ids,
            pad_id=int(self.tokenizer.pad_token_id or 0),
            seed=self.seed,
            batch_size=self.batch_size,
            keys=[f"{draw_stream} {index} {generation}" for index, generation in requests],
        )

    def _rollout(self, prompt: Prompt, index: int, generation: int, completion: Completion) -> Rollout:
        reply = self.replies.read(prompt.conversation, prompt.ids, completion.token_ids, completion.end_id)
        return Rollout(
            prompt=index,
            generation=generation,
            ids=completion.token_ids + ([] if completion.end_id is None else [completion.end_id]),
            text=reply.text,
            has_ended=completion.end_id is not None,
            reply=reply.message,
            logprobs=[] if self.engine is None else completion.token_logprobs,
        )


def add_scores(rollouts: Sequence[Rollout], prompts: Sequence[Prompt], rewards: Rewards) -> list[Rollout]:
    """Score completions.

    Args:
        rollouts: completions.
        prompts: all of those that were completed.
        rewards: the sources.

    Returns:
        The same rollouts with their scores.

    Raises:
        RewardError: a source failed on a completion and `on_error` is stop.
    """
    completed = [prompts[rollout.prompt] for rollout in rollouts]
    scores = rewards.score(
        [
            Sample(prompt.source, prompt.conversation, rollout.text, prompt.columns, rollout.reply)
            for prompt, rollout in zip(completed, rollouts, strict=True)
        ]
    )
    return [
        replace(
            rollout,
            score=total,
            by_source={name: values[row] for name, values in scores.by_source.items()},
            unscored=scores.reasons[row],
        )
        for row, (rollout, total) in enumerate(zip(rollouts, scores.total, strict=True))
    ]
