"""From reward sources to loaded rewards: the checks before, and what scores completions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignkit.config import ModelConfig
from alignkit.errors import RewardError
from alignkit.rewards.answers import Row, check_answers, check_verifier
from alignkit.rewards.backbone import Backbone, why_not_shared
from alignkit.rewards.classifier import ClassifierScorer, check_classifier
from alignkit.rewards.function import FunctionScorer, check_columns, check_function
from alignkit.rewards.reward_run import RewardRun, RewardRunScorer, check_reward_run
from alignkit.rewards.sample import RewardScorer
from alignkit.rewards.source import RewardSource
from alignkit.rewards.weighted import Rewards

_CHECKS = {
    "function": check_function,
    "classifier": check_classifier,
    "model": check_reward_run,
    "verifier": check_verifier,
}


def check_rewards(sources: Sequence[RewardSource]) -> list[str]:
    """Find what is wrong with the sources, one line each; user code is imported, no model is loaded."""
    return [problem for source in sources for problem in _CHECKS[source.kind](source)]


def check_reward_columns(sources: Sequence[RewardSource], columns: Sequence[str]) -> None:
    """Refuse functions that take columns which no prompt has.

    Args:
        sources: which `check_rewards` has passed.
        columns: of the prompts' rows.

    Raises:
        RewardError: one line for each column.
    """
    functions = [source for source in sources if source.kind == "function"]
    if problems := [problem for source in functions for problem in check_columns(source, columns)]:
        raise RewardError(*problems)


def check_reward_answers(sources: Sequence[RewardSource], rows: Sequence[Row]) -> None:
    """Refuse rows without an answer, or with one that its verifier cannot read.

    Args:
        sources: which `check_rewards` has passed.
        rows: where each prompt came from, and its columns.

    Raises:
        RewardError: one line for each fault, the first rows named.
    """
    verified = [source for source in sources if source.verifier is not None]
    if problems := [problem for source in verified for problem in check_answers(source, rows)]:
        raise RewardError(*problems)


def load_rewards(
    sources: Sequence[RewardSource], model: ModelConfig, *, device: torch.device, backbone: Backbone | None = None
) -> Rewards:
    """Load every source.

    Args:
        sources: which `check_rewards` has passed.
        model: the policy's section: a reward run computes with its `dtype` and `attn_implementation`.
        device: where classifiers and reward models compute.
        backbone: of the policy, where reward runs sit that can; None loads each on its own.

    Raises:
        RewardError, ModelError: a model cannot be loaded.
    """
    scorers = [_scorer(source, model, device, backbone, f"reward{i}") for i, source in enumerate(sources)]
    return Rewards(list(zip(sources, scorers, strict=True)))


def _scorer(
    source: RewardSource, model: ModelConfig, device: torch.device, backbone: Backbone | None, name: str
) -> RewardScorer:
    if source.kind in ("function", "verifier"):
        return FunctionScorer(source)
    if source.kind == "classifier":
        return ClassifierScorer(source, device=device)
    section = ModelConfig(source.name, dtype=model.dtype, attn_implementation=model.attn_implementation)
    run = RewardRun(section)
    why = why_not_shared(run.source, backbone)
    if backbone is None or why is not None:
        return RewardRunScorer(source, run.load(device), f"a model of its own: {why}")
    return RewardRunScorer(source, run.share(backbone, name, device=device), "on the policy's backbone")
