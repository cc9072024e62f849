"""What a job takes: bytes by what they are for, the largest micro-batch that fits, and its tokens and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from alignkit.planning.live_memory import bytes_of, tensors_of
from alignkit.planning.quantized import QuantizedLinear
from alignkit.planning.rehearsal import Models, Rehearsed, Step

_LARGEST = 4096  # rows of a micro-batch, where everything fits


@dataclass(frozen=True)
class Plan:
    """What a job takes, in bytes unless it says otherwise.

    Attributes:
        parameters: number of them, in every model that is in memory.
        trained: number of them that train.
        held: bytes that are there throughout, by what they are for.
        gradients: of what trains.
        batch_size: rows of a micro-batch.
        step: of such a micro-batch.
        cache: of keys and values, at the end of a rollout; None where nothing is generated in training.
        rollout: the most that a rollout takes on top of `held`; None as for `cache`.
        largest: rows of the largest micro-batch that fits; None where no memory was stated, 0 where none fits.
    """

    parameters: int
    trained: int
    held: dict[str, int]
    gradients: int
    batch_size: int
    step: Step
    cache: int | None
    rollout: int | None
    largest: int | None

    @property
    def total_held(self) -> int:
        return sum(self.held.values())

    @property
    def peak(self) -> int:
        """The most bytes at any time of training."""
        return self.total_held + max(self.step.peak, self.rollout or 0)


def make_plan(rehearsed: Rehearsed, *, processes: int, memory: int | None) -> Plan:
    """Take the steps that tell what a job takes.

    Args:
        rehearsed: ready to take them.
        processes: of data parallelism, whose gradients are gathered in buckets.
        memory: bytes that it must fit into; None where that is not asked.
    """
    models, size = rehearsed.models, rehearsed.args.per_device_train_batch_size
    held = {**_by_purpose(models), "optimizer": rehearsed.optimizer_state}
    if processes > 1:
        held["gradient buckets"] = rehearsed.gradients
    cache, rollout = (None, None) if rehearsed.rehearsal.rollout is None else rehearsed.rollout()
    rehearsed.models.trained.train()
    step = rehearsed.step(size)
    total = sum(held.values())
    largest = None
    if memory is not None:
        room = memory - total
        fits = (rollout or 0) <= room
        largest = _largest(size, step.peak, room, lambda rows: rehearsed.step(rows).peak) if fits else 0
    return Plan(
        parameters=_num_parameters(models),
        trained=sum(weight.numel() for weight in models.trained_weights()),
        held={name: size for name, size in held.items() if size},
        gradients=rehearsed.gradients,
        batch_size=size,
        step=step,
        cache=cache,
        rollout=rollout,
        largest=largest,
    )


def _num_parameters(models: Models) -> int:
    """Count parameters; those that share a byte are as many as they were before."""
    modules = {part: None for module in models.all() if module is not None for part in module.modules()}
    weights = dict.fromkeys(weight for part in modules for weight in part.parameters(recurse=False))
    packed = [part for part in modules if isinstance(part, QuantizedLinear)]
    shared = sum(part.in_features * part.out_features - part.weight.numel() for part in packed)
    return sum(weight.numel() for weight in weights) + shared


def _by_purpose(models: Models) -> dict[str, int]:
    """Bytes of weights: of the model, of adapters on it, and of the models beside it."""
    adapters = {
        id(weight): weight
        for layer in models.trained.modules()
        if isinstance(layer, BaseTunerLayer)
        for name, weight in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    return {
        "weights": bytes_of([t for t in tensors_of(models.trained) if id(t) not in adapters]),
        "adapters": bytes_of(adapters.values()),
        "value function": bytes_of(tensors_of(models.value)),
        "reference": bytes_of(tensors_of(models.reference)),
        "rewards": bytes_of(tensors_of(*models.rewards)),
    }


def _largest(size: int, peak: int, room: int, peak_of: Callable[[int], int]) -> int:
    """Find the most rows whose step has room, from a line through two sizes, by steps of the sizes around it.

    Args:
        size: rows of a micro-batch.
        peak: bytes of its step.
        room: bytes.
        peak_of: bytes of a step of so many rows.
    """
    found: dict[int, int] = {size: peak}

    def fits(rows: int) -> bool:
        if rows not in found:
            found[rows] = peak_of(rows)
        return found[rows] <= room

    fits(2 * size)
    a_row = max(1, (found[2 * size] - peak) // size)
    guess = min(_LARGEST, max(1, size + (room - peak) // a_row))
    low, high = (guess, _LARGEST + 1) if fits(guess) else (0, guess)
    width = max(1, guess // 64)
    while high - low > 1:
        near = low + width if high == _LARGEST + 1 else high - width if low == 0 else (low + high) // 2
        rows = min(max(near, low + 1), high - 1)
        low, high = (rows, high) if fits(rows) else (low, rows)
        width *= 2
    return low


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values, all sizes in bytes."""
    return {
        "parameters": {"total": plan.parameters, "trained": plan.trained},
        "bytes": {
            **{name.replace(" ", "_"): size for name, size in plan.held.items()},
            "gradients": plan.gradients,
            "activations": plan.step.activations,
            "logits": plan.step.logits,
            **({} if plan.cache is None else {"cache": plan.cache, "rollout": plan.rollout}),
            "held": plan.total_held,
            "step": plan.step.peak,
            "peak": plan.peak,
        },
        "micro_batch": plan.batch_size,
        "largest_micro_batch": plan.largest,
    }
