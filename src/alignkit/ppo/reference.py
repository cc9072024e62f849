"""The policy as it was at the start, held without a second copy of the backbone wherever there are adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

REF = "ref"  # the frozen twin of an adapter that is trained further
_POLICY = "default"


def hold_reference(model: Any, adapter: Path | None) -> nn.Module | None:
    """Keep the start of a policy.

    Args:
        model: the policy before its first step.
        adapter: the folder of the adapter that is trained further; None where the adapter is fresh or there is none.

    Returns:
        A frozen copy where every weight trains; None where the reference lives in the model itself: its backbone with
        the adapter off, or, of an adapter that is trained further, a second frozen adapter.
    """
    if not isinstance(model, PeftModel):
        twin: nn.Module = copy.deepcopy(model).requires_grad_(False)
        return twin
    if adapter is not None:
        model.load_adapter(str(adapter), REF, is_trainable=False)
        model.set_adapter(_POLICY)
    return None


@contextmanager
def as_reference(model: Any) -> Iterator[None]:
    """A model with adapters answers as the reference while the block runs."""
    if REF not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(REF, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(_POLICY)


def drop_reference(model: Any) -> None:
    """Take the second adapter off, so that what is saved is the policy alone."""
    if isinstance(model, PeftModel) and REF in model.peft_config:
        model.delete_adapter(REF)


def what_is_held(model: Any, reference: nn.Module | None) -> str:
    """What is in memory, in words."""
    if reference is not None:
        return "two copies of the model: the policy, and the reference it must stay near"
    if REF in model.peft_config:
        return "one copy of the backbone: policy and reference are two adapters on it"
    return "one copy of the backbone: with its adapter it is the policy, without it the reference"
