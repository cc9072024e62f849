"""`--reward` of compare and evaluate: scores of the answers of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from alignkit.config import ModelConfig, SamplingConfig
from alignkit.errors import AlignkitError
from alignkit.evaluate.prompts import Prompts
from alignkit.evaluate.served_model import ServedModel
from alignkit.models.load import computing_device
from alignkit.rewards.load import check_reward_columns, check_rewards, load_rewards
from alignkit.rewards.reply import Reply, ReplyDecoder
from alignkit.rewards.sample import Sample
from alignkit.rewards.source import parse_option
from alignkit.rewards.weighted import Rewards
from alignkit.sampling.generate import Completion

logger = logging.getLogger(__name__)


def check_reward(name: str) -> list[str]:
    """List what is wrong with `--reward`, one line each; a function's file is imported, no model is loaded."""
    source = parse_option(name, batch_size=1)
    try:
        if not (problems := check_rewards([source])):
            check_reward_columns([source], ())  # a function gets prompts and answers here, and no columns
        return problems
    except AlignkitError as error:
        return list(error.problems)


def load_reward(name: str, model: ModelConfig, *, batch_size: int) -> Rewards:
    """Load the reward; its model, if it is one, is in memory from now on.

    Args:
        name: the option.
        model: of the policy: a reward run computes as it does.
        batch_size: answers scored together.
    """
    return load_rewards([parse_option(name, batch_size=batch_size)], model, device=computing_device())


def read_replies(
    policy: ServedModel,
    prompts: Prompts,
    rows: Sequence[Sequence[int]],
    completions: Sequence[Completion],
    sampling: SamplingConfig,
) -> list[Reply]:
    """Read completions as PPO reads them for its rewards.

    Args:
        policy: whose they are.
        prompts: one for each.
        rows: the prompts as it was fed them.
        completions: of the prompts.
        sampling: how they were drawn.
    """
    decoder = ReplyDecoder(policy.reply_form, sampling)
    return [
        decoder.read(prompt, ids, completion.token_ids, completion.end_id)
        for (_, prompt), ids, completion in zip(prompts, rows, completions, strict=True)
    ]


def score_answers(rewards: Rewards, prompts: Prompts, answers: Sequence[Reply]) -> list[float]:
    """Score each answer.

    Raises:
        RewardError: there is none for an answer.
    """
    samples = [
        Sample(source, prompt, answer.text, reply=answer.message)
        for (source, prompt), answer in zip(prompts, answers, strict=True)
    ]
    scores = rewards.score(samples).total
    return [score for score in scores if score is not None]  # none is: what cannot be scored has stopped it


def warn_of_reward(
    rewards: Rewards, policy: ServedModel, finish_reasons: Sequence[str], sampling: SamplingConfig
) -> None:
    """Warn of a reward run with another template than the model's, and of scores of responses that were cut off."""
    for line in rewards.template_mismatches(policy.template.jinja, policy.name):
        logger.warning("%s", line)
    num_cut, num_all = sum(reason == "length" for reason in finish_reasons), len(finish_reasons)
    for line in rewards.scored_though_cut(num_cut, num_all, policy=policy.name, max_new_tokens=sampling.max_new_tokens):
        logger.warning("%s", line)
