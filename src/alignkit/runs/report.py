"""The end of a run: samples, picture, figures, and where everything is."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.runs.log import is_main_process
from alignkit.runs.plot import plot_losses
from alignkit.terminal import one_line, plain_number

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
    also: Sequence[str] = (),
    judge: Callable[[Mapping[str, Any]], Sequence[str]] = lambda figures: (),
    then: str = 'alignkit generate {run} --prompt "…"',
) -> dict[str, Any]:
    """Write `samples.jsonl` and `loss.png`, and say what came out and where it is.

    Args:
        run_dir: of the run; the trained model is in it already.
        history: what the trainer logged, each entry with `step`.
        samples: prompts with what was wanted, and the answers before and after.
        kept_step: the step whose weights are the result; None for the last.
        unit: of the loss.
        also: the ends of the names of other held-out figures to show.
        judge: what to warn of, given the figures.
        then: the command to try next.

    Returns:
        The figures for the run's record: the first value of each held-out figure and that of the kept step, the last
        training loss, and the kept step.
    """
    if not is_main_process():
        return {}
    last = kept_step if kept_step is not None else last_step(history)
    known = [entry for entry in history if entry["step"] <= last]
    figures = _figures(known, also)
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
        change = " → ".join(plain_number(figure[end]) for end in ("first", "last") if end in figure)
        logger.info("%-17s %s", name.replace("_", " "), change)
    for key in figures:
        if key.endswith("_loss"):
            warn_if_no_better(known, key)
    for line in judge(figures):
        logger.warning("%s", line)
    found = {
        **({"kept": kept_words(last, is_best=kept_step is not None)} if history else {}),
        "model": run_dir,
        "metrics": run_dir / "metrics.jsonl",
        **({"picture": run_dir / "loss.png"} if drawn else {}),
        "rows": run_dir / "rows.jsonl",
        "page": run_dir / "report.html",
        "log": run_dir / "log.txt",
    }
    for name, path in found.items():
        logger.info("%-17s %s", name, path)
    logger.info("next: %s", then.format(run=shlex.quote(str(run_dir))))
    return figures | ({"kept_step": last} if history else {})


def last_step(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the last step that was logged; 0 of none."""
    return max((int(entry["step"]) for entry in history), default=0)


def kept_words(step: int, *, is_best: bool) -> str:
    """Say which step's weights are the result."""
    return f"step {step}, the {'best' if is_best else 'last'}"


def warn_if_no_better(history: Sequence[Mapping[str, Any]], key: str, *, higher_is_better: bool = False) -> None:
    """Warn where the last value of a held-out figure is no better than that before the first step, if both are known.

    Args:
        history: what the trainer logged up to the step that is kept, each entry with `step`.
        key: of the figure.
        higher_is_better: it is a score, not a loss.
    """
    values = [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]
    if len(values) < 2 or values[0][0] != 0:
        return
    before, kept = values[0][1], values[-1][1]
    if kept > before if higher_is_better else kept < before:
        return
    name = key.removeprefix("eval_").replace("_", " ")
    logger.warning("no better than before training: the held-out %s was %.4g, and is %.4g", name, before, kept)


def _figures(history: Sequence[Mapping[str, Any]], also: Sequence[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for entry in history:
        for key in entry:
            if key.startswith("eval_") and key.endswith(("_loss", *also)):
                figures.setdefault(key, {"first": entry[key]})["last"] = entry[key]
        if "loss" in entry:
            figures["train_loss"] = {"last": entry["loss"]}
    return figures
