"""The page of a run, or of a chain of runs: what ran, what was measured, what to make of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from alignkit.pages.curves import overlaid, panels
from alignkit.pages.lineage import chain_of, lines_of
from alignkit.pages.page import render
from alignkit.pages.pipeline import pipeline_steps
from alignkit.pages.run_files import (
    CARD,
    FIRST_ROWS,
    MOST_CHARS,
    JsonLines,
    fits,
    ledger,
    read_json,
    rollouts,
    shortened,
)
from alignkit.pages.sweep import is_sweep, runs_of_sweep, swept
from alignkit.pages.verdicts import Measured, Verdict, examine, number
from alignkit.pages.words import chosen_settings, duration, figures, title_of, told
from alignkit.runs.found import FoundRun
from alignkit.runs.manifest import read_manifest
from alignkit.runs.output import writing
from alignkit.terminal import printable

logger = logging.getLogger(__name__)

REPORT = "report.html"
_MOST_SAMPLES = 20
_EVALUATED = ("loss", "reward", "kl")
_SCRIPTS = ("uplot/uPlot.iife.min.js", "templates/report.js")
_STYLES = ("uplot/uPlot.min.css",)


@dataclass(frozen=True)
class Step:
    """A run as its page shows it.

    Attributes:
        run: the run.
        name: how it is called on the page.
        verdicts: on its training.
        shown: the values of the template.
        data: what the scripts of the page draw.
    """

    run: FoundRun
    name: str
    verdicts: list[Verdict]
    shown: dict[str, Any]
    data: dict[str, Any]


def report_page(
    runs: Sequence[FoundRun], *, pipeline: Path | None = None, sweep: Path | None = None
) -> tuple[str, list[Step]]:
    """Make the page of some runs and of all they came from.

    Args:
        runs: that are asked for.
        pipeline: the folder of the pipeline whose runs they are.
        sweep: the folder of the sweep whose runs they are.

    Returns:
        The page, and its steps, each after those it starts from.
    """
    chain = chain_of(runs)
    names = {run.folder.resolve(): _name(run.folder) for run in chain}
    steps = [_step(run, names) for run in chain]
    asked = {run.folder.resolve() for run in runs}
    trained = [step.run.folder.resolve() for step in steps if step.shown["has_curves"]]
    beside = [step for step in steps if step.run.folder.resolve() in asked and step.shown["has_curves"]]
    overlay = {} if pipeline or len(beside) < 2 else dict(zip(_own_names(beside), beside, strict=True))
    is_open = set() if overlay else asked if pipeline is None else {*trained[-1:]}
    numbers = {step.run.folder.resolve(): place for place, step in enumerate(steps, start=1)}
    page = render(
        "report.html",
        scripts=_SCRIPTS,
        styles=_STYLES,
        uplot_license=_license(),
        title=_name(whole) if (whole := pipeline or sweep) else " · ".join(names[run.folder.resolve()] for run in runs),
        swept=[
            {"line": line, "number": numbers.get(line.folder.resolve())} for line in (swept(sweep) if sweep else ())
        ],
        has_overlay=bool(overlay),
        pipeline=[
            {"step": step, "number": numbers.get(step.run.folder.resolve()) if step.run else None}
            for step in (pipeline_steps(pipeline) if pipeline else ())
        ],
        steps=[{**step.shown, "is_open": step.run.folder.resolve() in is_open} for step in steps],
        lineage=[
            {
                "role": line.role,
                "base": line.base,
                "places": [{"name": _name(folder), "number": numbers.get(folder)} for folder in line.folders],
            }
            for line in lines_of(runs, chain)
        ],
        running=any(run.status == "running" for run in runs),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        data={
            "steps": [step.data for step in steps],
            "overlay": overlaid({name: step.data["panels"] for name, step in overlay.items()}),
        },
    )
    return page, steps


def write_report(folder: Path) -> None:
    """Write the page of a run, a pipeline or a sweep into its folder, whole or not at all."""
    if (manifest := read_manifest(folder)) is not None:
        page, _ = report_page([FoundRun(folder, manifest)])
    elif is_sweep(folder):
        page, _ = report_page(runs_of_sweep(folder), sweep=folder)
    else:
        page, _ = report_page([step.run for step in pipeline_steps(folder) if step.run], pipeline=folder)
    with writing(folder / REPORT) as aside:
        aside.write_text(page, encoding="utf-8")


def keep_report(folder: Path) -> None:
    """Write the page; what hinders that is told, and hinders nothing else: a training of days must not end for it."""
    try:
        write_report(folder)
    except Exception as error:
        logger.warning("%s could not be written: %s: %s", folder / REPORT, type(error).__name__, error)


def _step(run: FoundRun, names: Mapping[Path, str]) -> Step:
    """Read the files of a run."""
    lines = {name: JsonLines(run.folder / f"{name}.jsonl") for name in ("metrics", "rows", "samples", "rollouts")}
    history, rows = list(lines["metrics"]), ledger(lines["rows"])
    kept, num_rollouts = rollouts(lines["rollouts"])
    samples = list(lines["samples"])[:_MOST_SAMPLES]
    result = run.manifest.get("result") or {}
    cards = {name: card for name, card in _object(read_json(run.folder / "report_card.json")).items() if _is_card(card)}
    first_rows = _first_rows(read_json(run.folder / "first_rows.json"))
    max_kl = (run.manifest.get("job", {}).get("ppo") or {}).get("max_kl")
    verdicts = examine(Measured(run.stage, history, result.get("kept_step"), max_kl, cards))
    name = names[run.folder.resolve()]
    shown = {
        "name": name,
        "title": title_of(run),
        "status": run.status,
        "told": told(run, history, rows, names),
        "figures": list(figures(result)),
        "verdicts": verdicts,
        "num_found": sum(verdict.state == "found" for verdict in verdicts),
        "sets": list(dict.fromkeys(name for line in rows for name in line.counts)),
        "ledger": rows,
        "first_rows": first_rows,
        "damaged": _damaged(run.folder, cards, first_rows),
        "cards": cards,
        "compared": _compared(read_json(run.folder / "evaluate.json")),
        "samples": [_sample(sample) for sample in samples],
        "num_rollouts": num_rollouts,
        "num_rollouts_shown": len(kept),
        "timings": _timings(run, history),
        "settings": chosen_settings(run.manifest),
        "starts": [start for start in run.manifest.get("starts") or [] if isinstance(start, dict)],
        "versions": _object(run.manifest.get("versions")),
        "precision": run.manifest.get("precision") or "",
        "unreadable": {f"{name}.jsonl": file.num_unreadable for name, file in lines.items() if file.num_unreadable},
        "has_curves": bool(history),
    }
    return Step(run, name, verdicts, shown, {"panels": panels(history), "rollouts": list(map(_rollout, kept))})


def _compared(content: Any) -> list[tuple[str, list[str]]]:
    """The figures of `alignkit evaluate`: of each model its loss, reward and KL with their intervals."""
    runs = [run for run in _object(content).get("runs", []) if isinstance(run, dict)]
    return [(str(run.get("name")), [_interval(run.get(key)) for key in _EVALUATED]) for run in runs]


def _interval(value: Any) -> str:
    found = {key: number(figure) for key, figure in _object(value).items() if isinstance(figure, (int, float))}
    around = f" [{found['low']}, {found['high']}]" if {"low", "high"} <= found.keys() else ""
    return found.get("value", found.get("mean", "–")) + around


def _name(folder: Path) -> str:
    """Call a run by its folder, from here where that is shorter."""
    whole = folder.resolve()
    from_here = os.path.relpath(whole)
    return from_here if not from_here.startswith("..") else str(whole)


def _own_names(steps: Sequence[Step]) -> list[str]:
    """Call runs by what tells them apart: their paths without the folders that all of them share."""
    paths = [str(step.run.folder.resolve()) for step in steps]
    return [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]


def _sample(sample: Mapping[str, Any]) -> dict[str, str]:
    shown = {key: shortened(sample[key]) for key in ("prompt", "wanted", "before", "after") if key in sample}
    for which in ("before", "after"):
        score = sample.get(f"score_{which}")
        shown[f"score_{which}"] = f"score {score:.3g}" if isinstance(score, (int, float)) else ""
    return {"prompt": "", "wanted": "", "before": "", "after": "", **shown}


def _rollout(row: Mapping[str, Any]) -> dict[str, Any]:
    scores = {printable(str(name)): _number(score) for name, score in _object(row.get("scores")).items()}
    return {
        "step": _number(row.get("step")),
        "prompt": printable(shortened(row.get("prompt", ""))),
        "completion": printable(shortened(row.get("completion", ""))),
        "score": _number(row.get("score")),
        "scores": scores if len(scores) > 1 else {},
        "kl": _number(row.get("kl")),
        "length": _number(row.get("length")),
        "ended": bool(row.get("has_ended", True)),
    }


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and abs(value) < float("inf")
    return float(f"{value:.6g}") if is_number else None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_card(card: Any) -> bool:
    if not fits(card, CARD):
        return False
    bars = card["margin"]["histogram"]
    drawn = len(bars["edges"]) == len(bars["counts"]) + 1 and max(bars["counts"], default=0) > 0
    return drawn and all(len(bucket["tokens"]) == 2 for bucket in card["by_length"])


def _first_rows(content: Any) -> dict[str, Any]:
    """The first rows with their mask, each cut to what a page shows."""
    if not fits(content, FIRST_ROWS):
        return {"legend": [], "rows": []}
    rows = [
        {**row, "parts": [{"name": part["name"], "spans": _cut(part["spans"])} for part in row["parts"]]}
        for row in content["rows"]
    ]
    return {"legend": content["legend"], "rows": rows}


def _damaged(folder: Path, cards: Mapping[str, Any], first_rows: Mapping[str, Any]) -> list[str]:
    """The files of which nothing, or not all, can be shown."""
    written = _object(read_json(folder / "report_card.json"))
    found = {"report_card.json": bool(written) and len(cards) == len(written), "first_rows.json": first_rows["legend"]}
    return [name for name, is_whole in found.items() if (folder / name).is_file() and not is_whole]


def _cut(spans: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    kept: list[Mapping[str, Any]] = []
    room = MOST_CHARS
    for span in spans:
        if room <= 0:
            return [*kept, {"text": "…", "supervised": False, "special": False}]
        kept.append({**span, "text": span["text"][:room]})
        room -= len(span["text"])
    return kept


def _timings(run: FoundRun, history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Seconds by phase, and by the parts of PPO's updates: name, time in words, percent of the longest."""
    timings = _object(run.manifest.get("timings"))
    seconds = {name: float(took) for name, took in timings.items() if isinstance(took, (int, float))}
    for entry in history:
        for key, took in entry.items():
            if key.startswith("seconds/") and isinstance(took, (int, float)):
                name = f"train: {key.removeprefix('seconds/')}"
                seconds[name] = seconds.get(name, 0.0) + took
    longest = max(seconds.values(), default=0.0) or 1.0
    return [(name, duration(took), 100 * took / longest) for name, took in seconds.items()]


def _license() -> str:
    from importlib import resources

    return resources.files("alignkit.pages").joinpath("uplot/LICENSE").read_text(encoding="utf-8")
