"""A sweep as a picture: the figure of each of its runs over what was swept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def plot_sweep(names: Sequence[str], values: Sequence[float], path: Path, *, figure: str, best: int) -> None:
    """Draw a bar for each run.

    Args:
        names: what each run was told, such as `train.learning_rate=0.001`.
        values: the figure of each.
        path: of the PNG.
        figure: what the values are called.
        best: the index of the best run, which has another color.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 1.2 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    colors = ["#D55E00" if index == best else "#0072B2" for index in range(len(names))]
    bars = axes.barh(range(len(names)), values, color=colors)
    axes.bar_label(bars, labels=[f"{value:.4g}" for value in values], padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=figure)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=130)
