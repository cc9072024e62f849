"""A run in words: what was trained, on what, for how long, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.pages.lineage import base_of, role_of
from alignkit.pages.run_files import LedgerLine
from alignkit.pages.verdicts import number
from alignkit.runs.found import FoundRun
from alignkit.runs.manifest import flat

STAGES = {
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "dpo": "DPO",
    "ppo": "PPO",
    "merge": "Merge",
    "evaluate": "Evaluation",
    "compare": "Comparison",
}
_FIGURES = {
    "objective/score": "training score",
    "objective/kl": "training KL",
    "rollout/length": "training length",
    "train_loss": "training loss",
    "eval_kl": "held-out KL",
    "eval_logps/chosen": "held-out log-probability, chosen",
    "eval_logps/rejected": "held-out log-probability, rejected",
}
_UNITS = ((3600, "h"), (60, "min"), (1, "s"))


def title_of(run: FoundRun) -> str:
    """Name the stage."""
    return STAGES.get(run.stage, run.stage)


def told(
    run: FoundRun, history: Sequence[Mapping[str, Any]], ledger: Sequence[LedgerLine], folder_of: Mapping[Path, str]
) -> list[str]:
    """Tell what ran, a sentence each.

    Args:
        run: the run.
        history: its metrics.
        ledger: what became of its rows.
        folder_of: how the folders of other runs are called, by their whole path.
    """
    return [*filter(None, (_started_from(run, folder_of), _rows(run, ledger), _steps(run, history), _came_of_it(run)))]


def figures(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Go through the figures of a result: name, value before, value after."""
    for key, value in result.items():
        if key == "kept_step":  # told in words
            continue
        name = key.replace("_", " ").replace("/", " ")
        name = _FIGURES.get(key, f"held-out {name.removeprefix('eval ')}" if key.startswith("eval_") else name)
        if isinstance(value, Mapping):
            yield name, _with_error(value, "first"), _with_error(value, "last")
        else:
            yield name, "", _plain(value)


def duration(seconds: float) -> str:
    """Write a time in its two largest units."""
    words, rest = [], round(seconds)
    if rest < 1:
        return f"{seconds:.2f} s"
    for size, unit in _UNITS:
        if rest >= size:
            words.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(words[:2])


def chosen_settings(manifest: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """List the settings that somebody chose: key, value, where; all settings of a run that does not say where."""
    origins = manifest.get("origins") or {}
    settings = flat(manifest.get("job", {}))
    return [(key, _plain(value), str(origins.get(key, ""))) for key, value in settings if key in origins or not origins]


def _started_from(run: FoundRun, folder_of: Mapping[Path, str]) -> str:
    job = run.manifest.get("job", {})
    parents = run.manifest.get("parents", [])
    named = {
        p.get("setting", "model.name"): folder_of.get(f, str(f)) for p, f in zip(parents, run.parents, strict=True)
    }
    several = [named.pop(key) for key in list(named) if role_of(key) == "models"]
    model = named.pop("model.name", " and ".join(several) or base_of(run))
    others = [f"{role_of(key)} {name}" for key, name in named.items()]
    lora = job.get("lora") or {}
    how = f" with LoRA (rank {lora['r']})" if isinstance(lora, dict) and "r" in lora else ""
    return f"{title_of(run)} of {model}{how}{', with ' + ', '.join(others) if others else ''}."


def _rows(run: FoundRun, ledger: Sequence[LedgerLine]) -> str:
    counts = {line.label: line.counts.get("train", 0) for line in ledger}
    used = sum(count for label, count in counts.items() if not label.startswith("dropped"))
    dropped = sum(counts.values()) - used
    if not counts:
        return ""
    inputs = _object(run.manifest.get("inputs"))
    files = [name.removeprefix("train ") for name in _object(inputs.get("data")) if name.startswith("train ")]
    path = ", ".join(files) or (run.manifest.get("job", {}).get("data") or {}).get("path", "its data")
    held_out = sum(line.counts.total() - line.counts.get("train", 0) for line in ledger)
    left_out = f", {dropped:,} were dropped" if dropped else ""
    return f"It learned from {used:,} rows of {_plain(path)}{left_out}; {held_out:,} were held out."


def _steps(run: FoundRun, history: Sequence[Mapping[str, Any]]) -> str:
    step = max((entry["step"] for entry in history if isinstance(entry.get("step"), int)), default=0)
    seconds = run.manifest.get("timings", {}).get("train")
    unit = "updates" if run.stage == "ppo" else "steps"
    took = f" in {duration(seconds)}" if isinstance(seconds, (int, float)) else ""
    machine = (run.manifest.get("starts") or [{}])[-1]
    devices = ", ".join(machine.get("accelerators") or []) or str(machine.get("processor", ""))
    where = f" on {devices}" if devices else ""
    starts = len(run.manifest.get("starts") or [])
    again = f", started {starts} times" if starts > 1 else ""
    return f"It took {step:,} {unit}{took}{where}{again}." if step else ""


def _came_of_it(run: FoundRun) -> str:
    if run.status in ("failed", "interrupted"):
        return f"It {'failed' if run.status == 'failed' else 'was interrupted'}: {run.manifest.get('error', 'killed')}"
    if run.status == "running":
        return "It is running: this page is written again while it does."
    kept = run.manifest.get("result", {}).get("kept_step")
    return f"The weights of step {kept:,} are the result." if isinstance(kept, int) else ""


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _with_error(value: Mapping[str, Any], which: str) -> str:
    if which not in value:
        return ""
    error = value.get(f"{which}_se")
    return _plain(value[which]) + (f" ± {number(error)}" if isinstance(error, float) else "")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
