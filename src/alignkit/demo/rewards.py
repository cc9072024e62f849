"""Rewards of a line or two, for the smoke recipe and as examples of what a reward function looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def count_a(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """How many letters "a" a completion has: nonsense that a random model can learn in seconds."""
    return [float(completion.count("a")) for completion in completions]
