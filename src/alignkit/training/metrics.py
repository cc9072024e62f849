"""What is measured while training: tokens, and the file `metrics.jsonl` that every number ends up in."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.data.batches.batching import IGNORED
from alignkit.data.batches.pair_batching import NOTHING


class TokenMeter:
    """Counts the tokens of this process's batches, and the time its steps take.

    Attributes:
        counts: [tokens without padding, supervised tokens] since the run began; they stay on the batches' device, so
            that counting waits for nothing.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2, dtype=torch.long)
        self._reported = self.counts
        self._seconds = 0.0
        self._started = 0.0

    def start(self) -> None:
        """Note that a step begins; what lies between steps (evaluating, saving) is not training time."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._seconds += time.perf_counter() - self._started

    def add(self, batch: Mapping[str, Any], *, num_rows: int) -> None:
        """Count one collated batch.

        Args:
            batch: `attention_mask`; `parts` where it holds pairs; else `position_ids` of rows that lie end to end;
                `labels` if any.
            num_rows: rows in it.
        """
        if (mask := batch.get("attention_mask")) is not None:
            num_tokens = mask.sum()
        elif (parts := batch.get("parts")) is not None:
            num_tokens = (parts != NOTHING).sum()
        else:  # each row has one position 0, and so has every token of padding
            num_tokens = batch["position_ids"].count_nonzero() + num_rows
        labels = batch.get("labels")
        num_supervised = torch.zeros_like(num_tokens) if labels is None else (labels[..., 1:] != IGNORED).sum()
        self.counts = self.counts.to(num_tokens.device) + torch.stack([num_tokens, num_supervised])

    def report(self, accelerator: Any) -> dict[str, float]:
        """Report counts since the run began and rates since the last report, over all processes (all must call)."""
        both = torch.stack([self.counts, self._reported.to(self.counts.device)])[None].to(accelerator.device)
        (tokens, supervised), (tokens_before, supervised_before) = accelerator.gather(both).sum(0).tolist()
        seconds = max(self._seconds, 1e-9)
        self._reported, self._seconds = self.counts, 0.0
        logs = {"tokens": tokens, "tokens_per_second": (tokens - tokens_before) / seconds}
        if supervised:
            rate = (supervised - supervised_before) / seconds
            logs |= {"supervised_tokens": supervised, "supervised_tokens_per_second": rate}
        return logs

    def restore(self, counts: Tensor) -> None:
        """Go on counting from a checkpoint's totals."""
        self.counts = self._reported = counts


class MetricsFile(TrainerCallback):
    """Writes every log of the trainer to a JSON-lines file, one object a line, each with its `step`.

    A resumed run goes on where its checkpoint was: what a killed process had written beyond that is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            keep_logged(self.path, [int(entry["step"]) for entry in state.log_history])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The closing summary describes one session, not the run: its loss and times start anew with every resume.
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        numbers = {key: value if math.isfinite(value) else None for key, value in logs.items()}  # JSON knows no NaN
        with self.path.open("a", encoding="utf-8") as file:  # closed each time, so that it outlives a killed process
            file.write(json.dumps({"step": state.global_step, **numbers}) + "\n")


def keep_logged(path: Path, steps: Sequence[int]) -> None:
    """Take out of a JSON-lines file, if it is there, what a checkpoint does not know of.

    Args:
        path: of the file.
        steps: the `step` of each line that the checkpoint knows: what came after it, at its own step too, comes again.
    """
    known = Counter(steps)
    seen: Counter[int] = Counter()
    kept = []
    for line in read_metrics(path):
        seen[line["step"]] += 1
        kept += [line] if seen[line["step"]] <= known[line["step"]] else []
    _replace(path, kept)


def cut_after(path: Path, step: int) -> None:
    """Take the lines with a later `step` out of a JSON-lines file, if it is there; before step 1, all of them."""
    _replace(path, [line for line in read_metrics(path) if 0 < step >= line["step"]])  # step 0 logs again what it did


def _replace(path: Path, kept: Sequence[Mapping[str, Any]]) -> None:
    if not path.exists():
        return
    shorter = path.with_suffix(".tmp")
    shorter.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8")
    shorter.replace(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a metrics file, in order; a last line that a kill cut short is left out."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
