"""Say what a job takes before anything is loaded: parameters, bytes, tokens and steps, and whether that fits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from rich.text import Text

from alignkit.models.load import computing_device, for_another_machine
from alignkit.models.memory import explain_out_of_memory
from alignkit.planning.plan import Plan, as_dict, make_plan
from alignkit.planning.rehearsal import Rehearsal, Rehearsed
from alignkit.planning.sizes import parse_size, shown_size
from alignkit.runs.console import SafeConsole
from alignkit.runs.log import ASIDE, run_log
from alignkit.terminal import print_json_lines

_LOWER = "--measure takes a real step: leave it out to plan one that does not fit here"


def run(rehearse: Callable[[], Rehearsal], *, memory: str | None, processes: int, measure: bool, as_json: bool) -> None:
    """Take the steps of a stage without memory, and print what they would take.

    Args:
        rehearse: reads the rows of the stage, and says how it takes a step.
        memory: that it must fit into, such as `24GB`; None is that of the GPU here, if there is one.
        processes: of data parallelism.
        measure: take real steps on the device here instead.
        as_json: print one JSON object.

    Raises:
        AlignkitError: `memory` is no size, or the architecture cannot be built.
    """
    room = _room(memory)
    device = computing_device() if measure else None
    with run_log(ASIDE), explain_out_of_memory(_LOWER):
        with nullcontext() if measure else for_another_machine():
            rehearsal = rehearse()
        plan = make_plan(Rehearsed(rehearsal, device), processes=processes, memory=room)
    facts = {
        "stage": rehearsal.stage,
        "architecture": rehearsal.architecture,
        "model_type": rehearsal.model_type,
        "precision": _precision(rehearsal.args),
        "gradient_checkpointing": bool(rehearsal.args.gradient_checkpointing),
        "processes": processes,
        "optimizer": getattr(rehearsal.args.optim, "value", rehearsal.args.optim),
        "measured_on": None if device is None else str(device),
    }
    verdict = {} if room is None else {"memory": room, "fits": plan.peak <= room}
    if as_json:
        print_json_lines([{**facts, **as_dict(plan), **verdict, "data": dict(rehearsal.facts)}])
    else:
        _show(plan, facts, rehearsal, room)


def _room(memory: str | None) -> int | None:
    if memory is not None:
        return parse_size(memory)
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _precision(args: Any) -> str:
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"


def _show(plan: Plan, facts: dict[str, Any], rehearsal: Rehearsal, room: int | None) -> None:
    console = SafeConsole()
    checkpointing = "on" if facts["gradient_checkpointing"] else "off"
    how = f"measured on {facts['measured_on']}" if facts["measured_on"] else "without loading weights"
    console.print(f"{rehearsal.stage}: a {rehearsal.model_type}, read from {rehearsal.architecture}, {how}")
    console.print(
        f"computing in {facts['precision']}, gradient checkpointing {checkpointing}, {facts['optimizer']}, "
        f"{facts['processes']} process{'es' * (facts['processes'] > 1)}\n"
    )
    rows = [("parameters", f"{plan.parameters:,}"), ("trained", f"{plan.trained:,}"), ("", "")]
    rows += [(name, shown_size(size)) for name, size in plan.held.items()]
    rows += [("gradients", shown_size(plan.gradients))]
    rows += [(f"activations of {plan.batch_size} rows", shown_size(plan.step.activations))]
    rows += [("logits and loss", shown_size(plan.step.logits))]
    if plan.cache is not None:
        rows += [("cache of a rollout", shown_size(plan.cache))]
        rows += [("peak of a rollout", shown_size(plan.total_held + (plan.rollout or 0)))]
    rows += [("peak of a step", shown_size(plan.total_held + plan.step.peak)), ("", "")]
    rows += [
        (name.replace("_", " "), f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
        for name, value in rehearsal.facts.items()
    ]
    for name, value in rows:
        console.print(Text(f"{name:<28}{value:>20}".rstrip()))
    if room is not None:
        fits = plan.peak <= room
        verdict = "fits" if fits else "does not fit"
        largest = f"the largest micro-batch that fits is {plan.largest:,}" if plan.largest else "no micro-batch fits"
        console.print(
            Text.assemble(
                "\n",
                (f"{verdict} into {shown_size(room)}", "green" if fits else "bold red"),
                f": {shown_size(plan.peak)} at its peak; {largest}",
            )
        )
