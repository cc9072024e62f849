"""The curves of a run: which metrics share a panel, and no more points than a picture can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.pages.verdicts import Points, points
from alignkit.terminal import printable

_MOST_POINTS = 600  # of a curve: more than a panel has pixels
# The panels that are shown first, in this order: their metrics, and what a curve is called beside "held out".
_PANELS: dict[str, dict[str, str]] = {
    "loss": {"loss": ""},
    "score": {"objective/score": "", "score": ""},
    "accuracy": {"rewards/accuracies": "", "accuracy": ""},
    "margin": {"rewards/margins": "", "margin": ""},
    "log-probability of the responses (nats)": {"logps/chosen": "chosen", "logps/rejected": "rejected"},
    "KL to the reference (nats a completion)": {"objective/kl": "", "kl": ""},
    "length (tokens)": {"rollout/length": "", "length": ""},
    "entropy (nats a token)": {"objective/entropy": "", "entropy": ""},
    "token accuracy": {"mean_token_accuracy": ""},
    "losses of PPO": {"loss/policy": "policy", "loss/value": "value", "loss/kl": "KL"},
    "share of completions that end": {"rollout/eos_fraction": "", "eos_fraction": ""},
    "variance of the returns that the values explain": {"value/explained_variance": ""},
    "norm of the gradient": {"grad_norm": ""},
    "learning rate": {"learning_rate": ""},
    "tokens a second": {"tokens_per_second": ""},
}
_PLACES = {key: (title, label) for title, metrics in _PANELS.items() for key, label in metrics.items()}
# Counters, clocks, and what is a part of another figure.
_LEFT_OUT = ("step", "epoch", "tokens", "num_tokens", "supervised_tokens", "total_flos", "optimizer_steps")
_LEFT_OUT_ENDS = ("_se", "runtime", "_per_second", "num_tokens")


def panels(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lay out the curves of a run.

    Args:
        history: the entries of `metrics.jsonl`.

    Returns:
        Of each panel its `title`; `first`, whether it is among those to show first; `x`, the steps; and its `series`,
        each with a `label` and `y`, where null stands for no value at a step. Known ones come first.
    """
    found: dict[str, dict[str, Points]] = {title: {} for title in _PANELS}
    for key in dict.fromkeys(key for entry in history for key in entry):
        if not _is_left_out(key) and (curve := points(history, key)):
            title, label = _place(key)
            found.setdefault(printable(title), {})[printable(label)] = thinned(curve)
    return [
        _panel(title, dict(sorted(curves.items(), key=_rank)), first=title in _PANELS)
        for title, curves in found.items()
        if curves
    ]


def overlaid(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Lay the curves of several runs over each other: a panel for each curve that more than one of them has.

    Args:
        runs: the panels of each run, by what its curve is called.
    """
    found: dict[tuple[bool, str], dict[str, Points]] = {}
    for name, drawn in runs.items():
        for panel in drawn:
            for one in panel["series"]:
                curve = [(x, y) for x, y in zip(panel["x"], one["y"], strict=True) if y is not None]
                found.setdefault((panel["first"], f"{panel['title']}: {one['label']}"), {})[name] = curve
    shared = {place: curves for place, curves in found.items() if len(curves) > 1}
    return [_panel(title, curves, first=is_first) for (is_first, title), curves in shared.items()]


def thinned(curve: Points) -> Points:
    """Thin a curve: of each group of neighbors the lowest and the highest stay, so that no spike is lost."""
    if len(curve) <= _MOST_POINTS:
        return curve
    size = math.ceil(2 * len(curve) / _MOST_POINTS)
    kept: Points = []
    for start in range(0, len(curve), size):
        group = curve[start : start + size]
        kept += sorted({min(group, key=lambda point: point[1]), max(group, key=lambda point: point[1])})
    return kept


def _is_left_out(key: str) -> bool:
    base = key.removeprefix("eval_")
    is_shown = base in _PLACES
    return not is_shown and (base in _LEFT_OUT or base.endswith(_LEFT_OUT_ENDS) or base.startswith("seconds/"))


def _place(key: str) -> tuple[str, str]:
    """The panel of a metric, and the name of its curve there."""
    base, whose = key.removeprefix("eval_"), "held out" if key.startswith("eval_") else "training"
    if whose == "held out" and base.endswith("_loss"):  # of one of several held-out sets
        return "loss", f"held out: {base.removesuffix('_loss')}"
    title, label = _PLACES.get(base, (base.replace("_", " "), ""))
    return title, f"{label}, {whose}" if label else whose


def _rank(curve: tuple[str, Points]) -> bool:
    return "held out" in curve[0]  # behind those of training, so that each has its color in every panel


def _panel(title: str, curves: Mapping[str, Points], *, first: bool) -> dict[str, Any]:
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    at = {label: dict(curve) for label, curve in curves.items()}
    series = [{"label": label, "y": [_rounded(known.get(step)) for step in steps]} for label, known in at.items()]
    return {"title": title, "first": first, "x": steps, "series": series}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
