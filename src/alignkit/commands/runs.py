"""The runs of a project: listed as a tree, shown, compared, found for scripts, removed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from alignkit.errors import ConfigError, RunError, did_you_mean
from alignkit.evaluate.table import format_table
from alignkit.runs.difference import BOOKKEEPING, differences
from alignkit.runs.found import FoundRun, descendants, find_runs, named_run, named_sweep
from alignkit.runs.log import TERMINAL
from alignkit.runs.manifest import flat
from alignkit.runs.removal import check_removal, remove
from alignkit.runs.sweep_plot import plot_sweep
from alignkit.terminal import in_a_line, print_json_lines

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))
STATUSES = ("running", "finished", "failed", "interrupted")


def list_runs(root: Path, *, as_json: bool) -> None:
    """Print the runs below a folder as a tree of parents and children.

    Args:
        root: the folder.
        as_json: one object a run instead.
    """
    runs = find_runs(root)
    if as_json:
        print_json_lines(_summary(run) for run in runs)
    elif not runs:
        _say(f"there are no runs below {root}")
    else:
        names, rows = zip(*_tree(runs, root), strict=True)
        _print(format_table(names, rows))


def show_run(name: str, root: Path, *, as_json: bool, png: Path | None) -> None:
    """Print what a run, or a sweep, was told, what it started from, and what came of it.

    Args:
        name: of the run or the sweep.
        root: where runs are.
        as_json: the record and what is known of the folder, as one object.
        png: draw the figures of a sweep into this file, too.
    """
    if (sweep := named_sweep(name, root)) is not None:
        return _show_sweep(sweep, as_json=as_json, png=png)
    if png is not None:
        raise ConfigError(f"--png draws a sweep, and {name} is none: its own picture is in its folder")
    run = named_run(name, root)
    if as_json:
        return print_json_lines([{**_summary(run), "record": run.manifest}])
    for line in _described(run, find_runs(root) if root.is_dir() else [run]):
        _say(line)


def diff_runs(one: str, other: str, root: Path, *, as_json: bool) -> None:
    """Print in what two runs differ."""
    first, second = named_run(one, root), named_run(other, root)
    found = differences(first.folder, first.manifest, second.folder, second.manifest)
    if as_json:
        return print_json_lines([asdict(found)])
    if not found:
        return _say(f"{first.folder} and {second.folder} agree in settings, inputs, versions, figures and every step")
    for line in found.lines():
        _say(line)


def print_paths(name: str | None, root: Path, *, stage: str | None, status: str | None, last: bool) -> None:
    """Print the folders of the runs that are asked for, a line each.

    Raises:
        RunError: there is none.
    """
    if status is not None and status not in STATUSES:
        raise ConfigError(f"--status {status}: choose {', '.join(STATUSES)}{did_you_mean(status, STATUSES)}")
    runs = [named_run(name, root)] if name is not None else find_runs(root)
    runs = [run for run in runs if stage in (None, run.stage) and status in (None, run.status)]
    if not runs:
        wanted = " ".join(word for word in (status, stage) if word)
        raise RunError(f"there is no {wanted + ' ' if wanted else ''}run{f' {name}' if name else ''} below {root}")
    for run in runs[-1:] if last else runs:
        _say(str(run.folder))


def remove_runs(names: Sequence[str], root: Path, *, checkpoints: bool, ask: bool) -> None:
    """Remove runs, or their checkpoints, and say how many bytes that frees.

    Args:
        names: of the runs.
        root: where runs are.
        checkpoints: only their checkpoints.
        ask: before anything is removed.

    Raises:
        RunError: a run is being written, or others start from it.
    """
    import typer

    runs = list({run.folder.resolve(): run for run in (named_run(name, root) for name in names)}.values())
    check_removal(runs, find_runs(root) if root.is_dir() else runs, checkpoints=checkpoints)
    freed = sum(run.checkpoints if checkpoints else run.size for run in runs)
    for run in runs:
        what = f"checkpoints of {run.folder}" if checkpoints else str(run.folder)
        _say(f"{what}: {decimal(run.checkpoints if checkpoints else run.size)}")
    if ask and not typer.confirm(f"Remove {decimal(freed)}?"):
        return _say("nothing was removed")
    leaving = {run.folder.resolve() for run in runs}
    for run in runs:
        remove(run, root, checkpoints=checkpoints, leaving=leaving)
    _say(f"{decimal(freed)} freed")


# The tree


def _tree(runs: Sequence[FoundRun], root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The lines of the table of all runs: a name behind its branch, and the columns; a sweep is one line."""
    parents = _parents(runs)
    children: dict[Path | None, list[FoundRun]] = {}
    for run in runs:
        children.setdefault(parents[run.folder.resolve()], []).append(run)

    def lines(parent: Path | None, indent: str) -> Iterator[tuple[str, dict[str, str]]]:
        nodes = _nodes(children.get(parent, []))
        for number, node in enumerate(nodes, start=1):
            is_last = number == len(nodes)
            branch = "" if parent is None else indent + ("└─ " if is_last else "├─ ")
            yield branch + _name(node, root), _columns(node)
            below = "" if parent is None else indent + ("   " if is_last else "│  ")
            for run in node:
                yield from lines(run.folder.resolve(), below)

    yield from lines(None, "")


def _parents(runs: Sequence[FoundRun]) -> dict[Path, Path | None]:
    """The run that each hangs below: none where there is none here, or where a damaged record leads back to it."""
    folders = {run.folder.resolve() for run in runs}
    first = {run.folder.resolve(): next((p for p in run.parents if p in folders), None) for run in runs}

    def above(folder: Path | None) -> Iterator[Path]:
        seen: set[Path] = set()
        while folder is not None and folder not in seen:
            yield folder
            seen.add(folder)
            folder = first[folder]

    return {folder: None if folder in above(parent) else parent for folder, parent in first.items()}


def _nodes(runs: Sequence[FoundRun]) -> list[list[FoundRun]]:
    """Group the runs of a sweep; each other run is alone."""
    nodes: dict[Path, list[FoundRun]] = {}
    for run in runs:
        nodes.setdefault(run.sweep or run.folder, []).append(run)
    return list(nodes.values())


def _name(node: Sequence[FoundRun], root: Path) -> str:
    folder = node[0].sweep or node[0].folder
    inside = folder.relative_to(root) if folder.is_relative_to(root) and folder != root else folder
    return in_a_line(str(inside)) + (f" (sweep of {len(node)})" if node[0].sweep else "")


def _columns(node: Sequence[FoundRun]) -> dict[str, str]:
    figures = [run for run in node if run.figure is not None]
    best = _best(figures)
    name, value = best.figure if best is not None and best.figure is not None else ("", 0.0)
    statuses = dict.fromkeys(run.status for run in node)
    return {
        "stage": in_a_line(node[0].stage),
        "status": ", ".join(
            f"{_count(node, status)} {in_a_line(status)}" if len(node) > 1 else in_a_line(status) for status in statuses
        ),
        "figure": f"{name.removeprefix('eval_')} {value:.4g}" if name else "–",
        "age": _age(max(run.written for run in node)),
        "size": decimal(sum(run.size for run in node)),
    }


def _count(node: Sequence[FoundRun], status: str) -> int:
    return sum(run.status == status for run in node)


def _is_loss(run: FoundRun) -> bool:
    return run.figure is not None and "loss" in run.figure[0]


def _best(runs: Sequence[FoundRun]) -> FoundRun | None:
    """The best run of a sweep: the lowest loss, or the highest of any other figure."""
    if not runs:
        return None
    return (min if _is_loss(runs[0]) else max)(runs, key=lambda run: run.figure[1] if run.figure else 0.0)


def _age(when: float) -> str:
    seconds = max(time.time() - when, 0.0)
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _summary(run: FoundRun) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "stage": run.stage,
        "status": run.status,
        "figure": dict([run.figure]) if run.figure else {},
        "started": run.manifest.get("started"),
        "written": datetime.fromtimestamp(run.written).astimezone().isoformat(timespec="seconds"),
        "bytes": run.size,
        "checkpoint_bytes": run.checkpoints,
        "parents": [str(folder) for folder in run.parents],
        "sweep": str(run.sweep) if run.sweep else None,
    }


# One run


def _described(run: FoundRun, runs: Sequence[FoundRun]) -> Iterator[str]:
    manifest = run.manifest
    yield f"{run.folder}  {run.stage}, {run.status}" + (f": {in_a_line(manifest['error'])}" if _failed(run) else "")
    yield from _section("from", _lineage(run))
    yield from _section("then", (str(child.folder) for child in descendants(run, runs)))
    yield from _section("settings", _settings(manifest))
    yield from _section("figures", _figures(manifest.get("result", {})))
    yield from _section("starts", (_start(start) for start in manifest.get("starts", [])))
    yield from _section("seconds", (f"{phase} {took:,.1f}" for phase, took in manifest.get("timings", {}).items()))
    yield from _section("versions", [", ".join(f"{name} {v}" for name, v in manifest.get("versions", {}).items())])
    yield from _section("size", [f"{decimal(run.size)}, checkpoints {decimal(run.checkpoints)}"])


def _failed(run: FoundRun) -> bool:
    return run.status in ("failed", "interrupted") and bool(run.manifest.get("error"))


def _section(title: str, lines: Iterator[str] | Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{title if number == 0 else '':<9} {in_a_line(line)}"


def _lineage(run: FoundRun, above: frozenset[Path] = frozenset()) -> Iterator[str]:
    """What the run started from, down to the base model; `above` are the runs that led here."""
    above |= {run.folder.resolve()}
    name = run.manifest.get("job", {}).get("model", {}).get("name", "")
    if not run.parents:
        yield f"model.name: {name}"
    for parent, folder in zip(run.manifest.get("parents", []), run.parents, strict=True):
        yield f"{parent.get('setting', 'model.name')}: {folder}"
        if folder in above:
            yield "  which started from it: one of the records is damaged"
            continue
        try:
            yield from (f"  {line}" for line in _lineage(named_run(str(folder), folder), above))
        except RunError:
            yield "  it is gone"


def _settings(manifest: Mapping[str, Any]) -> Iterator[str]:
    """The settings that somebody chose, with where; every setting of a run that does not say where."""
    settings, origins = dict(flat(manifest.get("job", {}))), manifest.get("origins", {})
    for key, value in settings.items():
        if key in origins or not origins:
            yield f"{key}: {_value(value)}" + (f"  ({origins[key]})" if key in origins else "")


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    for name, value in result.items():
        if isinstance(value, dict) and "first" in value and "last" in value:
            yield f"{name}: {_number(value['first'])} → {_number(value['last'])}"
        else:
            yield f"{name}: {_number(value['last'] if isinstance(value, dict) and 'last' in value else value)}"


def _start(start: Mapping[str, Any]) -> str:
    git = start.get("git") or {}
    commit = f", commit {git['commit'][:12]}{' and changes' if git.get('changed') else ''}" if git else ""
    command = " ".join(start.get("command", []))
    return f"{start.get('at')} on {start.get('host')} in {start.get('folder')}{commit}: {command or 'from Python'}"


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _value(value)


def _value(value: Any) -> str:
    return in_a_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


# One sweep


def _show_sweep(folder: Path, *, as_json: bool, png: Path | None) -> None:
    runs = find_runs(folder)
    if as_json:
        return print_json_lines(_summary(run) for run in runs)
    swept = _swept(runs)
    with_figures = [run for run in runs if run.figure is not None]
    best = _best(with_figures)
    names = [in_a_line(run.folder.name) + (" *" if run is best else "") for run in runs]
    rows = [{**swept[run.folder], "status": in_a_line(run.status), **_figure_column(run)} for run in runs]
    _print(format_table(names, rows))
    if best is not None:
        _say(f"* the best is {best.folder}")
    if png is not None and best is not None and best.figure is not None:
        told = [", ".join(f"{k}={v}" for k, v in swept[run.folder].items()) for run in with_figures]
        values = [run.figure[1] for run in with_figures if run.figure is not None]
        plot_sweep(
            told, values, png, figure=best.figure[0], best=with_figures.index(best), lower_is_better=_is_loss(best)
        )
        _say(f"picture {png}")


def _swept(runs: Sequence[FoundRun]) -> dict[Path, dict[str, str]]:
    """The settings in which the runs of a sweep differ, of each run."""
    jobs = {run.folder: dict(flat(run.manifest.get("job", {}))) for run in runs}
    keys = list(dict.fromkeys(key for job in jobs.values() for key in job))
    swept = [
        key for key in keys if key not in BOOKKEEPING and len({json.dumps(job.get(key)) for job in jobs.values()}) > 1
    ]
    return {folder: {in_a_line(key): _value(job.get(key)) for key in swept} for folder, job in jobs.items()}


def _figure_column(run: FoundRun) -> dict[str, str]:
    return {run.figure[0].removeprefix("eval_"): f"{run.figure[1]:.4g}"} if run.figure else {}


def _say(line: str) -> None:
    _print(in_a_line(line))


def _print(text: str) -> None:
    TERMINAL.print(text, markup=False, highlight=False)
