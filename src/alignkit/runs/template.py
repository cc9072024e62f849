"""What a run was trained with besides its template, and later commands render with, too.

These are the arguments of the template, and the forms in which tools and reasoning were written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.choices import ReasoningForm, ToolsForm
from alignkit.config import DataConfig, TemplateConfig
from alignkit.errors import ConfigError
from alignkit.home import expand_home
from alignkit.runs.manifest import flat, read_manifest


def run_template_kwargs(folder: Path | None) -> dict[str, Any] | None:
    """Read `template.kwargs` of the run, or of what was merged of it, in a folder; None where there is no run."""
    manifest = read_manifest(folder) if folder is not None else None
    return None if manifest is None else recorded_kwargs(manifest.get("job", {}))


def recorded_kwargs(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return `template.kwargs` of a job as it was recorded; empty where it had none."""
    kwargs = job.get("template", {}).get("kwargs")
    return dict(kwargs) if isinstance(kwargs, Mapping) else {}


def with_run_kwargs(template: TemplateConfig, folder: Path | None) -> TemplateConfig:
    """Lay the arguments of a command's own template over those that the run in a folder was trained with.

    They are the arguments of the run's template: any other than the one in the folder has none of them.

    Raises:
        ConfigError: the record has an interpolation in the place of a value; one line each.
    """
    if template.file or template.name != "native":
        return template
    kwargs = {**(run_template_kwargs(folder) or {}), **template.kwargs}
    problems = [
        f"template.kwargs.{key}: {folder} was trained with {value}, of which the value was not kept: give it"
        for key, value in flat(kwargs)
        if isinstance(value, str) and "${" in value
    ]
    if problems:
        raise ConfigError(*problems)
    return replace(template, kwargs=kwargs)


def kwargs_mismatch(folder: Path | None, template: TemplateConfig) -> str | None:
    """Say that a run was trained with other arguments of its template than those given now; None where it was not."""
    before = run_template_kwargs(folder)
    if before is None or before == template.kwargs:
        return None
    return f"{folder} was trained with template.kwargs={json.dumps(before)}; this run has {json.dumps(template.kwargs)}"


def run_forms(folder: Path | None) -> tuple[ToolsForm, ReasoningForm] | None:
    """Read `data.tools` and `data.reasoning` of the run, or of what was merged of it, in a folder; None without a run.

    Raises:
        ConfigError: the record has something else in the place of one of them; one line each.
    """
    manifest = read_manifest(folder) if folder is not None else None
    if manifest is None:
        return None
    data = manifest.get("job", {}).get("data", {})
    tools, reasoning = data.get("tools", ToolsForm.native), data.get("reasoning", ReasoningForm.native)
    wrong = [(ToolsForm, "tools", tools), (ReasoningForm, "reasoning", reasoning)]
    problems = [
        f"data.{name}: {folder} was trained with {value}, of which the form was not kept: write it into its run.json"
        for forms, name, value in wrong
        if value not in list(forms)
    ]
    if problems:
        raise ConfigError(*problems)
    return ToolsForm(tools), ReasoningForm(reasoning)


def run_columns(folder: Path | None) -> dict[str, Any]:
    """Read `data.columns` of the run, or of what was merged of it, in a folder; empty where there is none."""
    manifest = (read_manifest(folder) if folder is not None else None) or {}
    columns = manifest.get("job", {}).get("data", {}).get("columns")
    return dict(columns) if isinstance(columns, Mapping) else {}


def forms_mismatch(folder: Path | None, data: DataConfig) -> str | None:
    """Say that a run was trained with other forms of tools and reasoning than those given; None where it was not."""
    before = run_forms(folder)
    if before is None or before == (data.tools, data.reasoning):
        return None
    was = f"data.tools={before[0]} data.reasoning={before[1]}"
    return f"{folder} was trained with {was}; this run has data.tools={data.tools} data.reasoning={data.reasoning}"


def unused_forms(names: Sequence[str], data: DataConfig) -> list[str]:
    """List the forms of tools and reasoning that were chosen and that no model uses, a line each.

    Args:
        names: of the models; a run uses the forms of its training, any other model those of `data`.
        data: the section.
    """
    used = [run_forms(Path(expand_home(name))) for name in names]
    lines = []
    for at, name in enumerate(("tools", "reasoning")):
        chosen, default = getattr(data, name), getattr(DataConfig(), name)
        if chosen != default and all(forms is not None and forms[at] != chosen for forms in used):
            lines.append(f"data.{name}={chosen} has no effect: prompts are written as in the training of the run")
    return lines
