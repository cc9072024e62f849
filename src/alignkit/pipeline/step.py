"""One step of a pipeline, in this process."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from typing import Any

from alignkit.choices import Resume
from alignkit.commands import compare, evaluate, merge
from alignkit.launch import launch
from alignkit.pipeline.check import check_command, path_of
from alignkit.pipeline.composed import Composed, compose_step, layers_of
from alignkit.pipeline.file import Pipeline, Step
from alignkit.runs.directory import guard_run
from alignkit.runs.given import Given
from alignkit.runs.manifest import lineage


def run_step(pipeline: Pipeline, step: Step) -> None:
    """Run a step; where its run is there already, its words say what becomes of that, as those of a stage do.

    Raises:
        AlignkitError: the user's mistake, or what stopped the step, in words.
    """
    layers = layers_of(pipeline, step)
    if step.is_stage:
        launch(step.kind, list(step.words), config_dir=pipeline.config_dir, layers=layers)
        return
    earlier: dict[str, Composed] = {}
    for other in pipeline.steps[: pipeline.steps.index(step)]:
        earlier[other.name] = compose_step(pipeline, other, earlier)
    _run_command(compose_step(pipeline, step, earlier), [*layers.command])


def _run_command(composed: Composed, command: list[str]) -> None:
    """Run a command; it is over within minutes, and what an earlier run left is replaced."""
    check_command(composed, {}, ())
    folder, job, given = composed.folder, composed.job, composed.arguments
    inputs = composed.inputs()
    if composed.step.kind == "merge":
        shutil.rmtree(folder, ignore_errors=True)
        merge.run(job, out=folder, record=composed.record, inputs=inputs)
        return
    origins = dict.fromkeys(composed.step.arguments, composed.step.place)
    record = Given(composed.record, origins, command)
    with guard_run(folder, stage=composed.step.kind, given=record, resume=Resume.false, overwrite=True) as run:
        run.inputs, run.parents = inputs, lineage(_models(given), folder)
        run.begin()
        if composed.step.kind == "evaluate":
            asked: dict[str, Any] = {key: given.get(key) for key in ("reward", "reference", "pairs")}
            asked |= {"as_prompts": composed.as_prompts, "record": composed.record}
            evaluate.run(job, runs=given["models"], **asked, out=folder / "evaluate.json")
        else:
            asked = {"prompts": given.get("prompt", []), "prompts_path": path_of(given, "prompts")}
            asked |= {"html": folder / "compare.html", "out": folder / "compare.json"}
            compare.run(job, runs=given["models"], reward=given.get("reward"), **asked)


def _models(given: Any) -> dict[str, str]:
    """The models among the arguments of a command, by what names them."""
    models = {f"models[{i}]": name for i, name in enumerate(given["models"])}
    return models | {key: given[key] for key in ("reference", "reward") if given.get(key)}


def end_with_the_chain() -> None:
    """End this process as soon as standard input does, which the process of the chain holds.

    A chain that is killed leaves no step behind that goes on alone, and holds its run directory.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="chain", daemon=True).start()
