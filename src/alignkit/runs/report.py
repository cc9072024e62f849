"""The end of a run: samples, picture, figures, and where everything is."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.runs.log import is_main_process
from alignkit.runs.plot import plot_losses
from alignkit.terminal import one_line

logger = logging.getLogger(__name__)

_SHOWN_SAMPLES = 3
_SHOWN = 160  # characters of a sample on the terminal; samples.jsonl has all of it


def conclude(
    run_dir: Path,
    history: Sequence[Mapping[str, Any]],
    *,
    samples: Sequence[Mapping[str, str]],
    kept_step: int | None = None,
    unit: str = "nats per supervised token",
    then: str = 'alignkit generate {run} --prompt "…"',
) -> dict[str, Any]:
    """Write `samples.jsonl` and `loss.png`, and say what came out and where it is.

    Args:
        run_dir: of the run; the trained model is in it already.
        history: what the trainer logged, each entry with `step`.
        samples: prompts with what was wanted, and the answers before and after.
        kept_step: the step whose weights are the result; None for the last.
        unit: of the loss.
        then: the command to try next.

    Returns:
        The figures for the run's record: the first and last value of each held-out loss, the last training loss.
    """
    if not is_main_process():
        return {}
    last = kept_step if kept_step is not None else max((entry["step"] for entry in history), default=0)
    figures = _figures([entry for entry in history if entry["step"] <= last])
    for sample in samples[:_SHOWN_SAMPLES]:
        logger.info(
            "\nprompt   %s\n  before %s\n  after  %s",
            *(one_line(sample[key], _SHOWN) for key in ("prompt", "before", "after")),
        )
    if samples:
        lines = (json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        (run_dir / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    drawn = plot_losses(history, run_dir / "loss.png", unit=unit)
    logger.info("")
    for name, figure in figures.items():
        change = f"{figure['first']:.4f} → {figure['last']:.4f}" if "first" in figure else f"{figure['last']:.4f}"
        logger.info("%-17s %s", name.replace("_", " "), change)
    found = {
        "model": run_dir,
        "metrics": run_dir / "metrics.jsonl",
        **({"picture": run_dir / "loss.png"} if drawn else {}),
        "rows": run_dir / "rows.jsonl",
        "log": run_dir / "log.txt",
    }
    if kept_step is not None:
        logger.info("%-17s step %d, the best", "kept", kept_step)
    for name, path in found.items():
        logger.info("%-17s %s", name, path)
    logger.info("next: %s", then.format(run=run_dir))
    return figures


def _figures(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for entry in history:
        for key in entry:
            if key.startswith("eval_") and key.endswith("_loss"):
                figures.setdefault(key, {"first": entry[key]})["last"] = entry[key]
        if "loss" in entry:
            figures["train_loss"] = {"last": entry["loss"]}
    return figures
