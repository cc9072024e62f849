"""A step as a typed job, with everything that it was told and what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignkit.config import DataConfig, ModelConfig
from alignkit.errors import ConfigError
from alignkit.launch import StepLayers, step_job
from alignkit.pipeline.file import Pipeline, Step, references, with_folders
from alignkit.rewards.source import parse_option
from alignkit.runs.given import Given, mask_settings
from alignkit.runs.manifest import read_manifest
from alignkit.stages.inputs import fingerprints, fingerprints_of
from alignkit.stages.ppo.advantage import settled_given

_HOLD_OUT = ("sft", "dpo", "ppo")  # stages whose held-out rows `evaluate` can measure
_NO_DATA = DataConfig(path="")


@dataclass(frozen=True)
class Composed:
    """A step, composed.

    Attributes:
        step: as it is written.
        folder: of its run.
        job: the typed settings, `${run:STEP}` resolved.
        record: the settings as they were given, interpolations unresolved; of a command its arguments, too.
        arguments: of a command, resolved.
        refers: the earlier steps that it starts from or reads.
        as_prompts: `evaluate` reads the rows as prompts, as PPO has them.
    """

    step: Step
    folder: Path
    job: Any
    record: Mapping[str, Any]
    arguments: Mapping[str, Any]
    refers: tuple[str, ...]
    as_prompts: bool = False

    def inputs(self) -> dict[str, dict[str, str]]:
        """Compute checksums of all that the step reads beside its settings."""
        if self.step.is_stage:
            return fingerprints(self.job)
        models = {f"models[{i}]": ModelConfig(name) for i, name in enumerate(self.arguments.get("models", []))}
        models |= {} if models else {"model.name": self.job.model}
        functions = []
        if reference := self.arguments.get("reference"):
            models["reference"] = ModelConfig(reference)
        if reward := self.arguments.get("reward"):
            source = parse_option(reward, batch_size=1)
            if source.function:
                functions.append(("reward", source.function))
            else:
                models["reward"] = ModelConfig(source.name)
        data = getattr(self.job, "data", None)  # of compare, it has the forms of its prompts and no rows
        rows = data if isinstance(data, DataConfig) else None
        found = fingerprints_of(rows, self.job.template, models, functions)
        for key in ("pairs", "prompts"):
            if path := self.arguments.get(key):
                section = replace(_NO_DATA, path=str(path))
                found["data"] |= {
                    f"{key} {name.removeprefix('train ')}": digest
                    for name, digest in fingerprints_of(section, self.job.template, {})["data"].items()
                }
        return found


def compose_step(pipeline: Pipeline, step: Step, earlier: Mapping[str, Composed], **chain: Any) -> Composed:
    """Compose a step.

    Args:
        pipeline: that it is of.
        step: as it is written.
        earlier: the steps before it, which it may refer to.
        **chain: `resume` or `overwrite`, as the chain decided.

    Raises:
        ConfigError: one line for each mistake in its settings.
    """
    layers = layers_of(pipeline, step, **chain)
    arguments = {key: with_folders(value, layers.folders) for key, value in step.arguments.items()}
    words, given, as_prompts = list(step.words), {}, False
    if models := arguments.get("models"):
        given["model"] = {"name": models[0]}
    if step.kind == "evaluate" and not _has_data(step):
        given["data"], as_prompts = _held_out_by(step, earlier)
    job, record = step_job(step.kind, words, layers, config_dir=pipeline.config_dir, **given)
    if step.kind == "ppo":
        settled = settled_given(job, Given(record))
        assert settled is not None
        job, record = job.settled(), dict(settled.settings)
    if models:
        record["model"]["name"] = step.arguments["models"][0]
    record = mask_settings({**record, **step.arguments})
    refers = tuple(references(record))
    return Composed(step, pipeline.folder_of(step.name), job, record, arguments, refers, as_prompts)


def layers_of(pipeline: Pipeline, step: Step, **chain: Any) -> StepLayers:
    """Return what a step brings beside its words: its settings, where it is written, and what it may refer to."""
    contents: dict[str, Mapping[str, Any]] = {step.place: step.settings} if step.settings else {}
    if step.is_stage:
        run = {"run": {"dir": str(pipeline.folder_of(step.name))}}
        contents["alignkit run"] = {"name": f"{pipeline.name}-{step.name}", "hydra": run, **chain}
    names = [other.name for other in pipeline.steps]
    folders = {name: str(pipeline.folder_of(name)) for name in names[: names.index(step.name)]}
    options = ["--config-dir", str(pipeline.config_dir)] if pipeline.config_dir else []
    return StepLayers(contents, folders, ["alignkit", "run", *pipeline.words, *options])


def _has_data(step: Step) -> bool:
    return "data" in step.settings or any(word.startswith(("config=", "data=", "data.path=")) for word in step.words)


def _held_out_by(step: Step, earlier: Mapping[str, Composed]) -> tuple[Any, bool]:
    """The section `data` of the first model's training, and whether that was PPO, which reads prompts."""
    models = step.arguments.get("models") or [""]
    names = references(models[0])
    if names and names[0] in earlier:
        of = earlier[names[0]]
        kind, record = of.step.kind, of.record
    else:
        manifest = read_manifest(Path(models[0]).expanduser()) or {}
        kind, record = str(manifest.get("stage")), manifest.get("job", {})
    if kind not in _HOLD_OUT:
        raise ConfigError(
            f"data.path is missing: the first model, {models[0] or 'of models:'}, is no run of sft, dpo or ppo, which "
            "knows what it held out; give the step data"
        )
    return record["data"], kind == "ppo"
