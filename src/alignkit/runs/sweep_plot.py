"""A sweep as a picture: the figure of each of its runs over what was swept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.terminal import one_line, plain_number

_MOST_CHARS = 48  # of what a run was told


def plot_sweep(
    names: Sequence[str], values: Sequence[float], path: Path, *, figure: str, best: int, lower_is_better: bool
) -> None:
    """Draw a bar for each run.

    Args:
        names: what each run was told, such as `train.learning_rate=0.001`.
        values: the figure of each.
        path: of the PNG.
        figure: what the values are called.
        best: the index of the best run, which has another color.
        lower_is_better: of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 1.2 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.subplots()
    colors = ["#D55E00" if index == best else "#0072B2" for index in range(len(names))]
    bars = axes.barh(range(len(names)), values, color=colors)
    axes.bar_label(bars, labels=[plain_number(value) for value in values], padding=4)
    axes.set_yticks(range(len(names)), [one_line(name, _MOST_CHARS) for name in names])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    better = "lower" if lower_is_better else "higher"
    axes.set(xlabel=f"{figure.replace('_', ' ')} ({better} is better; the best is orange)")
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=130)
