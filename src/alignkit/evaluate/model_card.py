"""The page that the hub shows of a model, made from the records of the runs that led to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, model_info, try_to_load_from_cache
from huggingface_hub.errors import HTTPError

from alignkit.errors import as_yaml
from alignkit.models.source import ModelSource
from alignkit.runs.manifest import flat, parent_folders, read_manifest
from alignkit.terminal import in_a_line

MARK = "<!-- written by alignkit export, which may write it again -->"
_TIMEOUT = 10.0  # seconds
_BOOKKEEPING = ("name", "resume", "overwrite", "train.report_to")


@dataclass(frozen=True)
class Link:
    """A run on the way from the base to the model.

    Attributes:
        folder: of the run.
        manifest: its record; empty where it is gone.
        setting: of the run after it that named it; empty of the model itself.
        depth: how many runs are between it and the model.
    """

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)
    setting: str = ""
    depth: int = 0


def model_card(folder: Path, source: ModelSource, *, usage: str) -> str:
    """Write the page of a run, or of what was merged of one.

    Data, settings and figures are those of the run that trained it last. Folders of this machine are left out.

    Args:
        folder: with a record.
        source: the same folder as a model.
        usage: how to load it, in Markdown.
    """
    links = list(_links(folder))
    trained = next((link for link in links if link.manifest.get("stage") not in (None, "merge")), links[0])
    base = _base(links)
    license_ = _license(base)
    front = ModelCardData(
        base_model=base if isinstance(base, str) else None,
        base_model_relation=("adapter" if source.is_adapter else "finetune") if isinstance(base, str) else None,
        library_name="peft" if source.is_adapter else "transformers",
        pipeline_tag="text-classification" if source.is_reward else "text-generation",
        tags=["alignkit", str(trained.manifest.get("stage"))],
        datasets=[name.partition(" ")[2] for name in _inputs(trained, "hub_data")] or None,
        **license_,
    )
    parts = [
        f"---\n{front.to_yaml()}\n---\n\n{MARK}\n\n# {folder.resolve().name}\n",
        _summary(trained, base, license_),
        usage,
        _section("Data", _table(["data", "sha256 or commit"], _data(trained))),
        _section("Figures", _figures(trained)),
        _section("Settings", _settings(trained)),
        _section("Lineage", "\n".join(_lineage(links, base))),
        _section("Made with", "\n".join(_made_with(trained))),
    ]
    return "\n".join(part for part in parts if part)


def _links(folder: Path, setting: str = "", depth: int = 0) -> Iterator[Link]:
    manifest = read_manifest(folder) or {}
    yield Link(folder, manifest, setting, depth)
    for parent, path in zip(manifest.get("parents", []), parent_folders(folder, manifest), strict=True):
        yield from _links(path, str(parent.get("setting", "model.name")), depth + 1)


def _base(links: list[Link]) -> str | Path | None:
    """What the first run of the policy's own line began with: a hub id, or a folder; None of random weights."""
    first = [link for link in links if link.setting in ("", "model.name")][-1]
    if not first.manifest:  # it is gone
        return first.folder
    model = first.manifest.get("job", {}).get("model", {})
    path = Path(str(model.get("name") or "")).expanduser()
    if model.get("init") == "random" or not path.name:
        return None
    is_here = path.exists() or path.is_absolute() or len(path.parts) > 2 or "${" in path.name
    return path if is_here else str(path)


def _license(base: str | Path | None) -> dict[str, Any]:
    """The license in the page of the base, as it names it; empty where it is not known here."""
    try:
        if isinstance(base, Path):
            found = ModelCard.load(base / "README.md").data if (base / "README.md").is_file() else None
        elif base is not None:
            cached = try_to_load_from_cache(base, "README.md")
            found = (
                ModelCard.load(cached).data if isinstance(cached, str) else model_info(base, timeout=_TIMEOUT).card_data
            )
        else:
            found = None
    except (
        HTTPError,
        OSError,
        ValueError,
        yaml.YAMLError,
    ):  # no network, or a page that says nothing in the right form
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: str(value) for key in keys if found is not None and (value := found.get(key))}


def _summary(trained: Link, base: str | Path | None, license_: Mapping[str, str]) -> str:
    stage = trained.manifest.get("stage")
    began = "random weights" if base is None else f"`{base.name if isinstance(base, Path) else base}`"
    version = trained.manifest.get("versions", {}).get("alignkit", "")
    lines = [f"Trained by `alignkit {stage}` ({version}); it began with {began}."]
    if license_:
        lines.append(f"The license of the base is {license_.get('license_name') or license_['license']}.")
    elif base is not None:
        lines.append("The license of the base was not known where this page was written: look at its own page.")
    return " ".join(lines) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n" if text else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) if rows else ""


def _cell(text: str) -> str:
    return in_a_line(text).replace("|", r"\|").replace("<", "&lt;")


def _inputs(link: Link, kind: str) -> dict[str, str]:
    found = link.manifest.get("inputs", {}).get(kind)
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _data(trained: Link) -> list[tuple[str, ...]]:
    found = {**_inputs(trained, "data"), **_inputs(trained, "hub_data")}
    return [(name, f"`{value}`") for name, value in found.items()]


def _figures(trained: Link) -> str:
    """The figures of the record, and those of the report card with their intervals."""
    rows = []
    for name, value in trained.manifest.get("result", {}).items():
        first = value.get("first") if isinstance(value, dict) else None
        last = value.get("last") if isinstance(value, dict) else value
        rows.append((str(name), _number(first), _number(last), ""))
    for name, card in _cards(trained.folder):
        for figure in ("accuracy", "longer_wins"):
            found = card.get(figure)
            if isinstance(found, dict) and {"value", "low", "high"} <= found.keys():
                interval = f"{found['low']:.4g} to {found['high']:.4g}, of {card.get('pairs')} pairs"
                rows.append((f"{name}: {figure}", "", _number(found["value"]), interval))
    return _table(["figure", "before", "after", "95 % interval"], rows)


def _cards(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        cards = json.loads((folder / "report_card.json").read_bytes())
    except (OSError, ValueError):
        return
    yield from ((str(name), card) for name, card in cards.items() if isinstance(card, dict))


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _settings(trained: Link) -> str:
    """The settings that somebody chose, and where; every setting of a run that does not say where."""
    origins = trained.manifest.get("origins", {})
    rows = [
        (f"`{key}`", f"`{_without_folder(value)}`", _without_folder(origins.get(key, "")))
        for key, value in flat(trained.manifest.get("job", {}))
        if key not in _BOOKKEEPING and (key in origins or not origins)
    ]
    return _table(["setting", "value", "from"], rows)


def _without_folder(value: Any) -> str:
    """A value as YAML has it; of a file of this machine its name."""
    if isinstance(value, str):
        return Path(value).name if value.startswith(("/", "~")) else value
    return as_yaml(value)


def _lineage(links: list[Link], base: str | Path | None) -> Iterator[str]:
    for link in links:
        stage = link.manifest.get("stage") or "a run that was gone when this page was written"
        named = f" (`{link.setting}`)" if link.setting else ""
        yield f"{'  ' * link.depth}- {link.folder.resolve().name}: {stage}{named}"
        if link.setting in ("", "model.name"):
            first = link
    if not first.manifest:
        return
    commits = {key.rpartition(" ")[2]: value for link in links for key, value in _inputs(link, "models").items()}
    indent = "  " * (first.depth + 1)
    if isinstance(base, str):
        commit = f" at commit `{commits[base]}`" if base in commits else ""
        yield f"{indent}- [{base}](https://huggingface.co/{base}){commit}"
    else:
        yield f"{indent}- {'random weights' if base is None else base.name}"


def _made_with(trained: Link) -> Iterator[str]:
    versions = trained.manifest.get("versions", {})
    yield "- " + ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"- seed {trained.manifest.get('job', {}).get('seed', 0)}"
    last = (trained.manifest.get("starts") or [{}])[-1]
    devices = last.get("accelerators") or [last.get("processor", "")]
    if any(devices):
        yield f"- {last.get('processes', 1)} × {devices[0]}, {trained.manifest.get('precision') or 'float32'}"
    took = trained.manifest.get("timings", {}).get("train")
    if took:
        yield f"- {took:,.0f} seconds of training"
