"""How good a reward model is on held-out pairs: figures with their uncertainty, and one picture."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

_Z = 1.959963984540054  # 95 % of a normal distribution lies within so many standard deviations
_BUCKETS = 4
_CONFIDENCES = np.linspace(0.5, 1, 6)
_BLUE, _GREY, _ORANGE = "#0072B2", "#999999", "#D55E00"


def report_card(
    chosen: Sequence[float], rejected: Sequence[float], num_chosen: Sequence[int], num_rejected: Sequence[int]
) -> dict[str, Any]:
    """Compute the figures of held-out pairs, ready for JSON.

    Args:
        chosen: scores of the chosen responses.
        rejected: scores of the rejected ones, in the same order.
        num_chosen: tokens in each chosen response.
        num_rejected: tokens in each rejected response.

    Returns:
        `pairs`; `accuracy` and `longer_wins` (a tie counts half; `low` and `high` are Wilson's 95 % interval, 1927);
        `margin` (mean, standard deviation, histogram); `by_length` (about quarters by the tokens of both responses,
        in which pairs of one length stay together);
        `score_length_correlation` (Pearson's r, null where one of them does not vary); `calibration` (how often the
        better scored one was chosen, where σ(|margin|) says so) with its mean gap; `score_mean` and `score_std`.
    """
    scores, lengths = np.array([chosen, rejected], dtype=np.float64), np.array([num_chosen, num_rejected])
    margins = scores[0] - scores[1]
    wins = np.where(margins == 0, 0.5, margins > 0)
    longer = np.where(lengths[0] == lengths[1], 0.5, lengths[0] > lengths[1])
    counts, edges = np.histogram(margins, bins=min(30, max(5, len(margins) // 5)))
    calibration = _calibration(margins, wins)
    gaps = [abs(bin_["said"] - bin_["right"]) * bin_["pairs"] for bin_ in calibration]
    return {
        "pairs": len(margins),
        "accuracy": interval(float(wins.sum()), len(wins)),
        "longer_wins": interval(float(longer.sum()), len(longer)),
        "margin": {
            "mean": float(margins.mean()),
            "std": float(margins.std()),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        },
        "by_length": _by_length(lengths.sum(0), wins),
        "score_length_correlation": _correlation(scores.ravel(), lengths.ravel()),
        "calibration": calibration,
        "calibration_gap": sum(gaps) / len(margins),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
    }


def interval(num_right: float, num_all: int) -> dict[str, float]:
    """Compute a share with Wilson's 95 % interval, which holds near 0 and 1 and for few pairs too."""
    share = num_right / num_all
    middle = (share + _Z**2 / (2 * num_all)) / (1 + _Z**2 / num_all)
    half = _Z / (1 + _Z**2 / num_all) * math.sqrt(share * (1 - share) / num_all + _Z**2 / (4 * num_all**2))
    # at 0 and at 1 rounding may put an end on the wrong side of the share itself
    return {"value": share, "low": max(0.0, min(share, middle - half)), "high": min(1.0, max(share, middle + half))}


def write_card(cards: Mapping[str, dict[str, Any]], run_dir: Path) -> None:
    """Write `report_card.json` and one `report_card.png` for each set, and log the main figures.

    Args:
        cards: by the name of the held-out set.
        run_dir: of the run.
    """
    path = run_dir / "report_card.json"
    path.write_text(json.dumps(cards, indent=2) + "\n", encoding="utf-8")
    for name, card in cards.items():
        picture = run_dir / ("report_card.png" if len(cards) == 1 else f"report_card_{name}.png")
        _draw(card, picture)
        logger.info(
            "%-17s %s of %d pairs; longer wins: %s",
            name,
            share(card["accuracy"]),
            card["pairs"],
            share(card["longer_wins"]),
        )
        if card["accuracy"]["low"] <= card["longer_wins"]["value"]:
            logger.warning("%s: not clearly better than to choose the longer response", name)
        logger.info("%-17s %s, %s", "report card", path, picture)


def share(figure: Mapping[str, float]) -> str:
    """Format a share with its interval."""
    return f"{figure['value']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"


def _by_length(lengths: np.ndarray, wins: np.ndarray) -> list[dict[str, Any]]:
    order = np.argsort(lengths, kind="stable")
    buckets = [part for part in np.split(order, _cuts(lengths[order])) if len(part)]
    return [
        {
            "tokens": [int(lengths[part].min()), int(lengths[part].max())],
            "pairs": len(part),
            "accuracy": interval(float(wins[part].sum()), len(part)),
        }
        for part in buckets
    ]


def _cuts(lengths: np.ndarray) -> list[int]:
    """Where to cut sorted lengths into quarters: pairs of one length stay together."""
    cuts = []
    for quarter in range(1, _BUCKETS):
        at = len(lengths) * quarter // _BUCKETS
        ends = [int(np.searchsorted(lengths, lengths[at], side)) for side in ("left", "right")]
        cuts.append(min(ends, key=lambda end: abs(end - at)))
    return cuts


def _calibration(margins: np.ndarray, wins: np.ndarray) -> list[dict[str, Any]]:
    said = 1 / (1 + np.exp(-np.abs(margins)))
    bins = np.digitize(said, _CONFIDENCES[1:-1])
    return [
        {"said": float(said[bins == b].mean()), "right": float(wins[bins == b].mean()), "pairs": int((bins == b).sum())}
        for b in range(len(_CONFIDENCES) - 1)
        if (bins == b).any()
    ]


def _correlation(scores: np.ndarray, lengths: np.ndarray) -> float | None:
    if np.ptp(scores) == 0 or np.ptp(lengths) == 0:
        return None
    return float(np.corrcoef(scores, lengths)[0, 1])


def _draw(card: Mapping[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    margins, by_length, calibration = figure.subplots(1, 3)
    edges = card["margin"]["histogram"]["edges"]
    margins.stairs(card["margin"]["histogram"]["counts"], edges, fill=True, color=_BLUE)
    margins.axvline(0, color=_ORANGE)
    margins.set(xlabel="margin (chosen − rejected)", ylabel="pairs", title=f"accuracy {share(card['accuracy'])}")
    shares = [bucket["accuracy"] for bucket in card["by_length"]]
    positions = range(len(shares))
    values = [share["value"] for share in shares]
    errors = [[s["value"] - s["low"] for s in shares], [s["high"] - s["value"] for s in shares]]
    by_length.errorbar(positions, values, yerr=errors, fmt="o", color=_BLUE, capsize=4)
    by_length.axhline(card["longer_wins"]["value"], color=_GREY, linestyle="--", label="longer wins")
    by_length.set_xticks(list(positions), [f"{low}–{high}" for low, high in (b["tokens"] for b in card["by_length"])])
    by_length.set(xlabel="tokens of both responses", ylabel="accuracy", ylim=(0, 1.02), title="by length")
    by_length.legend(frameon=False, loc="lower left")
    calibration.plot([0.5, 1], [0.5, 1], color=_GREY, linestyle="--")
    calibration.plot(
        [b["said"] for b in card["calibration"]], [b["right"] for b in card["calibration"]], "o-", color=_BLUE
    )
    calibration.set(xlabel="σ(|margin|)", ylabel="share right", xlim=(0.5, 1.01), ylim=(0, 1.02), title="calibration")
    for axes in (margins, by_length, calibration):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
