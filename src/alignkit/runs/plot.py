"""The loss as a picture: looked at before any table is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's colors: color-blind readers can tell them apart, too.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SMOOTHED_FROM = 20  # logged points: fewer need no smoothing


def plot_losses(history: Sequence[Mapping[str, Any]], path: Path, *, unit: str) -> bool:
    """Draw the training loss and every held-out loss over the steps.

    Args:
        history: what the trainer logged, each entry with `step`.
        path: of the PNG.
        unit: of the loss.

    Returns:
        Whether there was anything to draw.
    """
    curves = _curves(history)
    if not curves:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for color, (name, points) in zip(_COLORS * len(curves), curves.items(), strict=False):
        steps, losses = zip(*points, strict=True)
        if name != "training":
            axes.plot(steps, losses, "o-", color=color, label=name, markersize=5)
        elif len(points) < _SMOOTHED_FROM:
            axes.plot(steps, losses, color=color, label=name)
        else:
            axes.plot(steps, losses, color=color, alpha=0.25, linewidth=1)
            axes.plot(steps, _smoothed(losses), color=color, label=f"{name} (smoothed)")
    axes.set(xlabel="step", ylabel=f"loss ({unit})")
    axes.locator_params(axis="x", integer=True)  # there is no step 1.5
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    return True


def plot_panels(
    history: Sequence[Mapping[str, Any]], panels: Mapping[str, Mapping[str, str]], path: Path, *, xlabel: str
) -> bool:
    """Draw one small picture for each panel, side by side.

    Args:
        history: what the trainer logged, each entry with `step`.
        panels: for each title, the logged keys with their names in the legend.
        path: of the PNG.
        xlabel: what a step is.

    Returns:
        Whether there was anything to draw.
    """
    curves = {
        title: {
            name: [(int(entry["step"]), float(entry[key])) for entry in history if entry.get(key) is not None]
            for key, name in keys.items()
        }
        for title, keys in panels.items()
    }
    curves = {title: drawn for title, named in curves.items() if (drawn := {k: v for k, v in named.items() if v})}
    if not curves:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = min(3, len(curves))
    num_rows = -(-len(curves) // num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 3 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, named) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(num_rows, num_columns, place)
        for color, (name, points) in zip(_COLORS * len(named), named.items(), strict=False):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, "o-" if name == "held out" else "-", color=color, label=name, markersize=4)
        axes.set(title=title, xlabel=xlabel)
        axes.locator_params(axis="x", integer=True)  # there is no step 1.5
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(named) > 1:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    return True


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in history:
        for key, value in entry.items():
            if key == "loss":
                name = "training"
            elif key.startswith("eval_") and key.endswith("loss"):
                name = key.removesuffix("loss").removeprefix("eval_").rstrip("_") or "held out"
            else:
                continue
            if isinstance(value, (int, float)):
                curves.setdefault(name, []).append((int(entry["step"]), float(value)))
    return curves


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean over about a twentieth of the points, without the lag of an empty start."""
    decay = 1 - 20 / max(len(values), 40)
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(mean / weight)
    return smoothed
