"""Where the time and the memory of a PPO update go, on a random Llama of any size: python scripts/bench/ppo_parts.py.

On a GPU the default is half a billion parameters with LoRA in bfloat16, 256 completions of 128 tokens; on a CPU the
same with a model of a few million. Prints the machine's name, and of rollout, scoring and update the seconds, tokens
per second and peak memory (the first update, which warms up, is left out), beside what is held: the weights, what
trains them, and the keys and values of a rollout. The model reads bytes: its vocabulary is 261 tokens, so that the
head, which a real model spends much on, costs next to nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from side_by_side import of_process

from alignkit.jobs import PpoJob
from alignkit.launch import compose_job
from alignkit.ppo.trainer import PpoTrainer
from alignkit.stages.ppo import run as ppo

SIZES = {"cuda": (24, 1280, 3584), "cpu": (4, 256, 512)}  # layers, hidden, inside the MLP
PARTS = ("rollout", "scoring", "update")
REWARD = "def length(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers, hidden, inner = SIZES[device]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=layers, help="layers of the model")
    parser.add_argument("--hidden", type=int, default=hidden, help="size of a hidden state")
    parser.add_argument("--inner", type=int, default=inner, help="size inside the MLP")
    parser.add_argument("--completions", type=int, default=256, help="completions in a rollout")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each completion; none ends before")
    parser.add_argument("--updates", type=int, default=4, help="number of updates")
    parser.add_argument("--together", type=int, default=32, help="completions in a forward and backward pass")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job, run_dir = _job(given, Path(folder)), Path(folder) / "run"
        held, peaks = _watch_memory()
        ppo.run(job, run_dir)
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "seconds/rollout" in line][1:]
    num_tokens = updates[0]["seconds/scoring"] * updates[0]["tokens_per_second/scoring"]  # of prompts and completions
    size = 2 if device == "cuda" else 4  # of a number: bfloat16 or float32
    held["keys and values"] = 2 * given.layers * given.hidden * size * num_tokens
    _report(updates, held, peaks)


def _job(given: Any, folder: Path) -> PpoJob:
    rows = ({"prompt": f"Say something about the number {n}."} for n in range(given.completions))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    sizes = {"num_hidden_layers": given.layers, "hidden_size": given.hidden, "intermediate_size": given.inner}
    heads = max(1, given.hidden // 64)
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 1024}
    return compose_job(
        "ppo",
        [
            *("model=tiny_llama", "model.dtype=auto", "template=instruction", "lora=ppo", "samples=0"),
            *(f"model.config.{key}={value}" for key, value in sizes.items()),
            *(f"data.path={folder}/rows.jsonl", f"reward=[{{function: '{folder}/reward.py:length'}}]"),
            *(f"ppo.num_prompts={given.completions}", f"ppo.num_updates={given.updates}", "ppo.show_every=0"),
            *(f"ppo.generation_batch_size={given.completions}", f"train.per_device_train_batch_size={given.together}"),
            *(f"sampling.max_new_tokens={given.tokens}", f"sampling.min_new_tokens={given.tokens}"),
            *("ppo.num_mini_batches=4", "train.report_to=none", "train.save_strategy='no'"),
        ],
    )


def _watch_memory() -> tuple[dict[str, float], dict[str, float]]:
    """Return two tables that training fills: bytes of what is held all the time, and the peak of each part."""
    held: dict[str, float] = {}
    peaks: dict[str, float] = defaultdict(float)
    train, timed = PpoTrainer.train, PpoTrainer._timed

    def watched_train(self: PpoTrainer, *args: Any, **kwargs: Any) -> Any:
        weights = list(self.policy.parameters())
        held["weights"] = sum(weight.numel() * weight.element_size() for weight in weights)
        trained = sum(weight.numel() * weight.element_size() for weight in weights if weight.requires_grad)
        held["gradients and moments"] = 3 * trained
        return train(self, *args, **kwargs)

    @contextmanager
    def watched_part(self: PpoTrainer, what: str) -> Iterator[list[float]]:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        with timed(self, what) as seconds:
            yield seconds
        peaks[what] = max(peaks[what], torch.cuda.max_memory_allocated() if on_gpu else of_process("VmHWM"))

    PpoTrainer.train, PpoTrainer._timed = watched_train, watched_part  # type: ignore[method-assign]  # from outside
    return held, peaks


def _report(updates: list[dict[str, float]], held: dict[str, float], peaks: dict[str, float]) -> None:
    print(f"machine: {torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()}")
    for name in PARTS:
        seconds = fmean(line[f"seconds/{name}"] for line in updates)
        rate = fmean(line[f"tokens_per_second/{name}"] for line in updates)
        print(f"{name:24} {seconds:8.2f} s {rate:12,.0f} tokens/s   at most {peaks[name] / 1e9:6.2f} GB")
    for name, size in held.items():
        print(f"{name:24} {size / 1e9:8.2f} GB")


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    main()
