"""What is wrong with the penalty on length that a PPO job asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alignkit.errors import did_you_mean

_KEYS = ("from", "to", "penalty")


def check_overlong(overlong: Mapping[str, Any], max_new_tokens: int) -> list[str]:
    """List what is wrong with `ppo.overlong`, one line each.

    Args:
        overlong: the setting; empty where there is no penalty.
        max_new_tokens: the longest a completion can be.
    """
    if not overlong:
        return []
    keys = [f"unknown key 'ppo.overlong.{key}'{did_you_mean(str(key), _KEYS)}" for key in overlong if key not in _KEYS]
    keys += [f"ppo.overlong.{key} is missing: give from, to and penalty" for key in _KEYS if key not in overlong]
    return keys or _wrong_numbers(overlong) or _wrong_order(overlong["from"], overlong["to"], max_new_tokens)


def _wrong_numbers(overlong: Mapping[str, Any]) -> list[str]:
    problems = [
        f"ppo.overlong.{key} is {overlong[key]!r}: it must be a number of tokens, at least 0"
        for key in ("from", "to")
        if not isinstance(overlong[key], int) or isinstance(overlong[key], bool) or overlong[key] < 0
    ]
    penalty = overlong["penalty"]
    if not isinstance(penalty, (int, float)) or isinstance(penalty, bool) or not 0 < penalty < math.inf:
        problems.append(f"ppo.overlong.penalty is {penalty!r}: it must be a number above 0")
    return problems


def _wrong_order(start: int, end: int, max_new_tokens: int) -> list[str]:
    if start >= end:
        return [f"ppo.overlong: from={start} is not below to={end}, and the penalty grows between them"]
    if end > max_new_tokens:
        return [f"ppo.overlong.to={end} is never reached: sampling.max_new_tokens is {max_new_tokens}"]
    return []
