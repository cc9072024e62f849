"""What a run of PPO shows and keeps: sample completions, `rollouts.jsonl`, curves and the closing lines."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.data.sets.prompts import Prompt
from alignkit.ppo.reference import Reference
from alignkit.ppo.rollout import Rollout
from alignkit.runs.log import is_main_process
from alignkit.runs.plot import plot_panels
from alignkit.runs.report import kept_words, last_step, warn_if_no_better
from alignkit.terminal import Lines, one_line
from alignkit.training.metrics import cut_after

logger = logging.getLogger(__name__)

_WIDTH = 160  # characters of a text on the terminal; the files have all of it
_NUM_SHOWN = 2  # sample completions shown at once
PANELS = {
    "score": {"objective/score": "training", "eval_score": "held out"},
    "KL to the reference (nats a completion)": {"objective/kl": "training", "eval_kl": "held out"},
    "length (tokens)": {"rollout/length": "training", "eval_length": "held out"},
    "entropy (nats a token)": {"objective/entropy": "entropy"},
    "losses": {"loss/policy": "policy", "loss/value": "value", "loss/kl": "KL"},
    "trainer and engine apart (nats a token)": {"engine/mismatch": "mean"},
    "groups whose rewards are all alike": {"group/flat_fraction": "share"},
    "variance of the returns that the values explain": {"value/explained_variance": "explained variance"},
}


class RolloutFile(TrainerCallback):
    """Keeps some rollouts of each update in a JSON-lines file and shows two every so often.

    A resumed run goes on where its checkpoint was: what a killed process had written beyond that is cut off.

    Args:
        path: of the file.
        prompts: that were completed.
        keep: completions of each update to write.
        show_every: updates between two showings; 0 never.
    """

    def __init__(self, path: Path, prompts: Sequence[Prompt], *, keep: int, show_every: int) -> None:
        self.path, self.prompts, self.keep, self.show_every = path, prompts, keep, show_every

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            cut_after(self.path, state.global_step)

    def __call__(self, update: int, rollouts: Sequence[Rollout], kl_B: Sequence[float | None]) -> None:
        """Write and show rollouts of an update, counted from 1, with the KL of each that has a score, in nats."""
        with self.path.open("a", encoding="utf-8") as file:
            for index in _choose(rollouts, self.keep):
                rollout, kl = rollouts[index], kl_B[index]
                prompt = self.prompts[rollout.prompt]
                line = {"step": update, "source": prompt.source, "prompt": prompt.text, "completion": rollout.text}
                line |= {"score": rollout.score, "scores": rollout.by_source, "kl": kl}
                line |= {"length": len(rollout.ids), "has_ended": rollout.has_ended}
                line |= {} if rollout.unscored is None else {"unscored": rollout.unscored}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.show_every and (update == 1 or update % self.show_every == 0):
            show_rollouts([rollouts[index] for index in _choose(rollouts, _NUM_SHOWN)], self.prompts)


def _choose(rollouts: Sequence[Rollout], num: int) -> list[int]:
    """Indices of some rollouts: one of each prompt comes before a second one of any."""
    return sorted(range(len(rollouts)), key=lambda index: (rollouts[index].generation, index))[:num]


def show(prompt: str, completions: Mapping[str, str]) -> None:
    """Log a prompt and its completions, each under its name."""
    lines = [
        f"prompt  {one_line(prompt, _WIDTH)}",
        *(f"  {name}  {one_line(text, _WIDTH)}" for name, text in completions.items()),
    ]
    logger.info("\n%s", Lines("\n".join(lines)))


def show_rollouts(rollouts: Sequence[Rollout], prompts: Sequence[Prompt]) -> None:
    """Log completions with their scores."""
    for rollout in rollouts:
        show(prompts[rollout.prompt].text, {_score(rollout): rollout.text})


def show_before_training(rollouts: Sequence[Rollout], prompts: Sequence[Prompt]) -> None:
    """Log completions with their scores before the first update: a broken reward is noticed before training."""
    show_rollouts(rollouts, prompts)
    logger.info("")


def conclude(
    run_dir: Path,
    history: Sequence[Mapping[str, Any]],
    *,
    prompts: Sequence[Prompt],
    before: Sequence[Rollout],
    after: Sequence[Rollout],
    kept_step: int | None,
    reference: Reference | None,
) -> dict[str, Any]:
    """Write `samples.jsonl` and `curves.png`, and log the results and where they are.

    Args:
        run_dir: of the run; the trained model is in it already.
        history: what the trainer logged, each entry with `step`.
        prompts: that the samples answer.
        before: samples of the policy training started from.
        after: samples of the result, of the same prompts.
        kept_step: the update whose weights are the result because it was the best; None for the last.
        reference: what the KL is to; None where it is not measured.

    Returns:
        The figures for the run's record.
    """
    if not is_main_process():
        return {}
    _write_samples(run_dir / "samples.jsonl", prompts, before, after)
    has_picture = plot_panels(history, PANELS | _reward_panels(history), run_dir / "curves.png", xlabel="update")
    figures = _figures(history, kept_step)
    logger.info("")
    for name, figure in figures.items():
        error = f" ± {figure['last_se']:.2g}" if "last_se" in figure else ""
        error_before = f" ± {figure['first_se']:.2g}" if "first_se" in figure else ""
        words = name.replace("_", " ").replace("/", " ")
        logger.info("%-17s %.4g%s → %.4g%s", words, figure["first"], error_before, figure["last"], error)
    kept = last_step(history) if kept_step is None else kept_step
    known = [entry for entry in history if entry["step"] <= kept]
    warn_if_no_better(known, "eval_score", higher_is_better=True)
    lines: dict[str, Any] = {"KL to": reference} if reference is not None else {}
    lines |= {"kept": kept_words(kept, is_best=kept_step is not None), "model": run_dir}
    lines |= {"metrics": run_dir / "metrics.jsonl"}
    lines |= {"picture": run_dir / "curves.png"} if has_picture else {}
    lines |= {"rollouts": run_dir / "rollouts.jsonl", "page": run_dir / "report.html", "log": run_dir / "log.txt"}
    for name, value in lines.items():
        logger.info("%-17s %s", name, value)
    logger.info('next: alignkit generate %s --prompt "…"', shlex.quote(str(run_dir)))
    return {**figures, "kept_step": kept}


def _reward_panels(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """A panel for each of several rewards, on a scale of its own."""
    keys = dict.fromkeys(key for entry in history for key in entry if key.startswith("score/"))
    return {one_line(key.removeprefix("score/"), 40): {key: "training", f"eval_{key}": "held out"} for key in keys}


def _write_samples(path: Path, prompts: Sequence[Prompt], before: Sequence[Rollout], after: Sequence[Rollout]) -> None:
    """Show and write completions before and after training; no file where there are none."""
    lines = []
    for first, last in zip(before, after, strict=True):
        prompt = prompts[first.prompt]
        show(prompt.text, {f"before {_score(first)}": first.text, f"after  {_score(last)}": last.text})
        line = {"source": prompt.source, "prompt": prompt.text, "before": first.text, "after": last.text}
        lines.append(json.dumps(line | {"score_before": first.score, "score_after": last.score}, ensure_ascii=False))
    if lines:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _figures(history: Sequence[Mapping[str, Any]], kept_step: int | None) -> dict[str, dict[str, float]]:
    """First and last value of score, KL and length, of training and held out; the last is that of the kept update."""
    figures: dict[str, dict[str, float]] = {}
    for key in ("eval_score", "eval_kl", "eval_length", "objective/score", "objective/kl", "rollout/length"):
        entries = [e for e in history if key in e and (kept_step is None or e["step"] <= kept_step)]
        entries = entries or [e for e in history if key in e][:1]
        if entries:
            figures[key] = {"first": entries[0][key], "last": entries[-1][key]}
            if f"{key}_se" in entries[0]:
                figures[key] |= {"first_se": entries[0][f"{key}_se"], "last_se": entries[-1][f"{key}_se"]}
    return figures


def _score(rollout: Rollout) -> str:
    return "score none" if rollout.score is None else f"score {rollout.score:.3g}"
