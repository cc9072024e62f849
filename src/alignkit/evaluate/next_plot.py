"""Distributions of the next token as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluate.next_tokens import NextTokens

_BEFORE, _AFTER = "#9ecae1", "#0072B2"


def plot_next(models: Sequence[NextTokens], path: Path) -> None:
    """Draw a bar for each of the likeliest tokens, one panel for each model: light before truncation, dark after it."""
    figure, panels = _panels(len(models), width=4.6, height=1.2 + 0.3 * max(len(model.tokens) for model in models))
    for axes, model in zip(panels, models, strict=True):
        positions = range(len(model.tokens))
        axes.barh(
            positions, [token.after for token in model.tokens], color=_AFTER, height=0.8, label="after truncation"
        )
        axes.barh(positions, [token.before for token in model.tokens], color=_BEFORE, height=0.4, label="before")
        axes.set_yticks(positions, [token.text for token in model.tokens], family="monospace", parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel="probability")
        axes.set_title(f"{model.label}\nentropy {model.entropies[0]:.2f} → {model.entropies[1]:.2f} nats", fontsize=9)
        axes.title.set_parse_math(False)
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")  # the shortest bars are below
    figure.savefig(path, dpi=130)


def plot_walk(models: Sequence[NextTokens], path: Path) -> None:
    """Draw the probability of each token of a response, one panel for each model, with its rank above the bar."""
    width = max(4.6, 0.32 * max(len(model.tokens) for model in models))
    figure, panels = _panels(len(models), width=width, height=3.2, stacked=True)
    for axes, model in zip(panels, models, strict=True):
        positions = range(len(model.tokens))
        axes.bar(positions, [token.before for token in model.tokens], color=_AFTER)
        for position, token in zip(positions, model.tokens, strict=True):
            axes.annotate(str(token.rank), (position, token.before), ha="center", va="bottom", fontsize=7)
        axes.set_xticks(
            positions, [token.text for token in model.tokens], family="monospace", rotation=90, parse_math=False
        )
        axes.set(ylabel="probability", ylim=(0, 1.08))
        axes.set_title(f"{model.label}: rank above the bar", fontsize=9, parse_math=False)
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
