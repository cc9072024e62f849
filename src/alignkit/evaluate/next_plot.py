"""Distributions of the next token as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluate.next_view import NextTokens

_BEFORE, _AFTER = "#9ecae1", "#0072B2"


def plot_next(views: Sequence[NextTokens], path: Path) -> None:
    """A bar for each of the likeliest tokens, one panel a view: light before truncation, dark after it."""
    figure, panels = _panels(len(views), width=4.6, height=1.2 + 0.3 * max(len(view.tokens) for view in views))
    for axes, view in zip(panels, views, strict=True):
        places = range(len(view.tokens))
        axes.barh(places, [token.after for token in view.tokens], color=_AFTER, height=0.8, label="after truncation")
        axes.barh(places, [token.before for token in view.tokens], color=_BEFORE, height=0.4, label="before")
        axes.set_yticks(places, [token.text for token in view.tokens], family="monospace", parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel="probability")
        axes.set_title(f"{view.label}\nentropy {view.entropies[0]:.2f} → {view.entropies[1]:.2f} nats", fontsize=9)
        axes.title.set_parse_math(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def plot_walk(views: Sequence[NextTokens], path: Path) -> None:
    """The probability of each token of a response, one panel a view, with its rank above the bar."""
    width = max(4.6, 0.32 * max(len(view.tokens) for view in views))
    figure, panels = _panels(len(views), width=width, height=3.2, stacked=True)
    for axes, view in zip(panels, views, strict=True):
        places = range(len(view.tokens))
        axes.bar(places, [token.before for token in view.tokens], color=_AFTER)
        for place, token in zip(places, view.tokens, strict=True):
            axes.annotate(str(token.rank), (place, token.before), ha="center", va="bottom", fontsize=7)
        axes.set_xticks(
            places, [token.text for token in view.tokens], family="monospace", rotation=90, parse_math=False
        )
        axes.set(ylabel="probability", ylim=(0, 1.08))
        axes.set_title(f"{view.label}: rank above the bar", fontsize=9, parse_math=False)
    figure.savefig(path, dpi=130)


def _panels(number: int, *, width: float, height: float, stacked: bool = False) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = (number, 1) if stacked else (1, number)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels
