"""Completions of prompts by the policy as it is now, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.config import SamplingConfig
from alignkit.data.sets.prompts import Prompt
from alignkit.rewards.sample import Sample
from alignkit.rewards.weighted import Rewards
from alignkit.sampling.generate import generate


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt.

    Attributes:
        prompt: its place among the prompts.
        generation: which of its completions this is, counted from 0.
        ids: the drawn tokens, the end token included where there is one.
        text: without the end token.
        has_ended: by an end token, not by `max_new_tokens`.
        logprobs: of each drawn token under the plain distribution (temperature 1) when it was drawn.
        score: the weighted sum over the reward sources; None where a source skipped it.
        by_source: score of each source, unweighted.
    """

    prompt: int
    generation: int
    ids: list[int]
    text: str
    has_ended: bool
    logprobs: list[float] = field(default_factory=list)
    score: float | None = None
    by_source: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    """Answers prompts.

    Attributes:
        tokenizer: of the policy.
        sampling: how tokens are drawn; what moves in it moves over the updates.
        eos_ids: the tokens that end a completion.
        response_lead: what the template begins an answer with; no part of its text.
        seed: of every draw.
        batch_size: most completions written together.
    """

    tokenizer: PreTrainedTokenizerBase
    sampling: SamplingConfig
    eos_ids: Sequence[int]
    response_lead: str
    seed: int
    batch_size: int

    def __call__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        asked: Sequence[tuple[int, int]],
        *,
        of: str,
        sampling: SamplingConfig,
    ) -> list[Rollout]:
        """Complete prompts.

        What a completion draws is a function of (seed, `of`, prompt, generation): neither the process nor the batch it
        is written in matters.

        Args:
            model: the policy.
            prompts: all of them.
            asked: (place of the prompt, generation) of each completion.
            of: what the draws belong to, such as the number of the update.
            sampling: the section as it is now, without schedules.
        """
        done = generate(
            model,
            [prompts[place].ids for place, _ in asked],
            sampling,
            eos_ids=self.eos_ids,
            pad_id=int(self.tokenizer.pad_token_id or 0),
            seed=self.seed,
            batch_size=self.batch_size,
            keys=[f"{of} {place} {generation}" for place, generation in asked],
        )
        return [
            Rollout(
                prompt=place,
                generation=generation,
                ids=completion.token_ids + ([] if completion.end_id is None else [completion.end_id]),
                text=self._text(completion.token_ids),
                has_ended=completion.end_id is not None,
                logprobs=completion.token_logprobs,
            )
            for (place, generation), completion in zip(asked, done, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        # without special tokens: a policy must not be paid for their names
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).removeprefix(self.response_lead)


def score(rollouts: Sequence[Rollout], prompts: Sequence[Prompt], rewards: Rewards) -> list[Rollout]:
    """The same rollouts with their scores."""
    asked = [prompts[rollout.prompt] for rollout in rollouts]
    scores = rewards.score(
        [
            Sample(prompt.source, prompt.conversation, rollout.text, prompt.columns)
            for prompt, rollout in zip(asked, rollouts, strict=True)
        ]
    )
    return [
        replace(rollout, score=total, by_source={name: values[row] for name, values in scores.by_source.items()})
        for row, (rollout, total) in enumerate(zip(rollouts, scores.total, strict=True))
    ]
