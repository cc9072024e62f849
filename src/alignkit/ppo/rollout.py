"""Completions of prompts by the policy as it is now, and their scores."""

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
        prompt: its index among the prompts.
        generation: which of its completions this is, counted from 0.
        ids: the drawn tokens, the end token included where there is one.
        text: without the end token.
        has_ended: by an end token, not by `max_new_tokens`.
        score: the weighted sum over the reward sources; None where a source skipped it.
        by_source: score of each source, unweighted.
    """

    prompt: int
    generation: int
    ids: list[int]
    text: str
    has_ended: bool
    score: float | None = None
    by_source: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class RolloutGenerator:
    """Completes prompts.

    Attributes:
        tokenizer: of the policy.
        eos_ids: the tokens that end a completion.
        response_lead: what the template begins an answer with; no part of its text.
        seed: of every draw.
        batch_size: most completions that are generated together.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: Sequence[int]
    response_lead: str
    seed: int
    batch_size: int

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
        completions = generate(
            model,
            [prompts[index].ids for index, _ in requests],
            sampling,
            eos_ids=self.eos_ids,
            pad_id=int(self.tokenizer.pad_token_id or 0),
            seed=self.seed,
            batch_size=self.batch_size,
            keys=[f"{draw_stream} {index} {generation}" for index, generation in requests],
        )
        return [
            Rollout(
                prompt=index,
                generation=generation,
                ids=completion.token_ids + ([] if completion.end_id is None else [completion.end_id]),
                text=self._text(completion.token_ids),
                has_ended=completion.end_id is not None,
            )
            for (index, generation), completion in zip(requests, completions, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        # without special tokens: a policy must not be paid for their names
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).removeprefix(self.response_lead)


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
            Sample(prompt.source, prompt.conversation, rollout.text, prompt.columns)
            for prompt, rollout in zip(completed, rollouts, strict=True)
        ]
    )
    return [
        replace(rollout, score=total, by_source={name: values[row] for name, values in scores.by_source.items()})
        for row, (rollout, total) in enumerate(zip(rollouts, scores.total, strict=True))
    ]
