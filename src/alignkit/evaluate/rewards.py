"""What a response is worth: a Python function of the user's own, or a reward model that `alignkit reward` trained."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignkit.config import ControlTokens, ModelConfig, TemplateConfig, TrainOn
from alignkit.data.conversation import Conversation, Message
from alignkit.data.formats import load_function
from alignkit.data.masking import Encoding, encode_rows
from alignkit.data.templates import Template, load_template
from alignkit.errors import AlignkitError, DataError, RewardError
from alignkit.evaluate.policy import Policy
from alignkit.evaluate.prompts import Asked, question
from alignkit.models.load import check_model, load_tokenizer, num_positions
from alignkit.models.reward import load_reward, reward_tokenizer, scores_of

logger = logging.getLogger(__name__)

_CALLED = "it is called (prompts, completions) and returns a list of numbers"
_NATIVE = TemplateConfig(name="native")


@dataclass
class Reward:
    """Scores of responses.

    Attributes:
        name: as it was given.
        score: (prompts, responses) to one number each.
        template: that the responses are rendered with to be scored; None where the text alone is.
    """

    name: str
    score: Callable[[Asked, Sequence[str]], list[float]]
    template: Template | None = None

    def warn_of_other_template(self, policy: Policy) -> None:
        """Say so where a policy was trained with another template than the reward model."""
        if self.template is not None and self.template.jinja != policy.template.jinja:
            logger.warning(
                "--reward %s was trained with another template than %s: it scores the same words, rendered its own way",
                self.name,
                policy.name,
            )


def check_reward(name: str, model: ModelConfig) -> list[str]:
    """What is wrong with `--reward` before anything is loaded, one line each; a function's file is imported.

    Args:
        name: `file.py:function`, `module:function`, or a reward run.
        model: the section, whose other settings a reward run shares.
    """
    try:
        if _is_function(name):
            return _signature_problems(name, load_function(name, "--reward"))
        check_model(_section(name, model), wants_reward=True)
    except AlignkitError as error:
        return [problem.replace("model.name:", "--reward:", 1) for problem in error.problems]
    return []


def load(name: str, model: ModelConfig, *, batch_size: int) -> Reward:
    """The scores that `check_reward` found nothing wrong with; a reward model is in memory from now on."""
    if _is_function(name):
        function = load_function(name, "--reward")
        return Reward(name, lambda asked, responses: _called(name, function, asked, responses))
    section = _section(name, model)
    tokenizer = load_tokenizer(section)
    template = load_template(_NATIVE, tokenizer)
    tokenizer = reward_tokenizer(tokenizer, end_id=template.end_id)
    loaded, _ = load_reward(section, tokenizer)
    if torch.accelerator.is_available():
        torch.nn.Module.to(loaded, torch.accelerator.current_accelerator())

    def score(asked: Asked, responses: Sequence[str]) -> list[float]:
        rows = _encoded(asked, responses, template, tokenizer, num_positions(loaded.config))
        return scores_of(loaded, rows, pad_id=int(tokenizer.pad_token_id), batch_size=batch_size)

    return Reward(name, score, template)


def _is_function(name: str) -> bool:
    return ":" in name and not Path(name).is_dir()


def _section(name: str, model: ModelConfig) -> ModelConfig:
    return ModelConfig(name, dtype=model.dtype, attn_implementation=model.attn_implementation)


def _signature_problems(name: str, function: Callable[..., Any]) -> list[str]:
    try:
        inspect.signature(function).bind([], [])
    except TypeError:
        return [f"--reward {name}: it does not take two arguments: {_CALLED}"]
    return []


def _called(name: str, function: Callable[..., Any], asked: Asked, responses: Sequence[str]) -> list[float]:
    prompts = [question(prompt) for _, prompt in asked]
    try:
        scores = [float(score) for score in function(prompts, list(responses))]
    except Exception as error:  # the user's code may fail in any way, and it is theirs to mend
        raise RewardError(f"--reward {name} raised {type(error).__name__}: {error}; {_CALLED}") from error
    if len(scores) != len(responses):
        raise RewardError(f"--reward {name} gave {len(scores)} scores for {len(responses)} responses: {_CALLED}")
    wrong = [
        f"--reward {name} gave {score} for {source}, response {response[:60]!r}: a score must be a finite number"
        for (source, _), response, score in zip(asked, responses, scores, strict=True)
        if not math.isfinite(score)
    ]
    if wrong:
        raise RewardError(*wrong)
    return scores


def _encoded(
    asked: Asked, responses: Sequence[str], template: Template, tokenizer: Any, longest: int | None
) -> list[list[int]]:
    """Prompt and response as the reward model was trained to read them, up to the end token."""
    conversations = [
        Conversation((*prompt.messages, Message("assistant", response)))
        for (_, prompt), response in zip(asked, responses, strict=True)
    ]
    found = encode_rows(
        conversations, template, tokenizer, train_on=TrainOn.last_turn, control_tokens=ControlTokens.neutralise
    )
    rows, problems = [], []
    for (source, _), row in zip(asked, found, strict=True):
        ids = row.input_ids[: row.responses[-1][1]] if isinstance(row, Encoding) else []
        if isinstance(row, str):
            problems.append(f"{source}: the reward model's template refuses it: {row}")
        elif longest is not None and len(ids) > longest:
            problems.append(f"{source}: {len(ids)} tokens, more than the reward model's {longest} positions")
        rows.append(ids)
    if problems:
        raise DataError(*problems)
    return rows
