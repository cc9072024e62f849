"""Groups: the completions of one prompt in a rollout, which lie together, and what their scores have to teach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from alignkit.ppo.metrics import mean, sample_std

_ROUNDING = 4 * 2.0**-23  # of float32, in which models score
_Item = TypeVar("_Item")


def grouped(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    """Cut what belongs to the completions of a rollout into its groups of this many."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def is_flat(scores: Sequence[float | None]) -> bool:
    """Tell whether the scores of a group are all alike but for rounding: no completion is better than another."""
    known = [score for score in scores if score is not None]
    return not known or max(known) - min(known) <= _ROUNDING * max(map(abs, known))


def group_metrics(shaped: Sequence[float | None], size: int) -> dict[str, float]:
    """Measure the share of groups that are flat, and the mean standard deviation of the scores in a group.

    Args:
        shaped: the scores that are learned from, group by group; None where there is none.
        size: completions in a group.

    Returns:
        Nothing where a group is a single completion.
    """
    if size < 2:
        return {}
    groups = grouped(shaped, size)
    return {
        "group/flat_fraction": mean([float(is_flat(group)) for group in groups]),
        "group/std": mean([sample_std([score for score in group if score is not None]) for group in groups]),
    }
