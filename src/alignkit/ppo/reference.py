"""The reference: the policy as it was at the start, without a second copy of the backbone where there are adapters."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from alignkit.models.adapters import Adapters

REF = "ref"  # the frozen twin of an adapter that is trained further


def hold_reference(model: Any, adapters: Adapters | None, *, is_continued: bool) -> nn.Module | None:
    """Keep the start of a policy.

    Args:
        model: the policy before its first step.
        adapters: on it; None where every weight trains.
        is_continued: its adapter was trained before, and is trained further.

    Returns:
        A frozen copy where every weight trains; None where the reference lives in the model itself: its backbone with
        the adapter off, or, of an adapter that is trained further, with a frozen twin of it.
    """
    if adapters is None:
        twin: nn.Module = copy.deepcopy(model).requires_grad_(False)
        return twin
    if is_continued:
        adapters.copy(REF, trains=False)
    return None


def reference_adapter(adapters: Adapters) -> str | None:
    """Return the adapter that the backbone computes with as the reference; None for none."""
    return REF if REF in adapters.model.peft_config else None


def describe_reference(adapters: Adapters | None) -> str:
    """Say what is in memory of policy and reference."""
    if adapters is None:
        return "two copies of the model: the policy, and the reference it must stay near"
    if reference_adapter(adapters):
        return "one copy of the backbone: policy and reference are two adapters on it"
    return "one copy of the backbone: with its adapter it is the policy, without it the reference"
