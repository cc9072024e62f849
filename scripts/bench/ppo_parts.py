"""Where the time and the memory of a PPO update go, on a random Llama of any size: python scripts/bench/ppo_parts.py.

On a GPU the default is half a billion parameters with LoRA in bfloat16, 256 completions of 128 tokens; on a CPU the
same with a model of a few million. Prints the machine's name, tokens per second and seconds of rollout, scoring and
update (the first update, which warms up, is left out), and peak memory beside its parts. The model reads bytes: its
vocabulary is 261 tokens, so that the head, which a real model spends much on, costs next to nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch

from alignkit.config import PpoJob
from alignkit.launch import compose_job
from alignkit.ppo.trainer import PpoTrainer
from alignkit.stages import ppo

SIZES = {"cuda": (24, 1280, 3584), "cpu": (4, 256, 512)}  # layers, hidden, inside the MLP
REWARD = "def length(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers, hidden, inner = SIZES[device]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--hidden", type=int, default=hidden)
    parser.add_argument("--inner", type=int, default=inner)
    parser.add_argument("--completions", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128, help="of each completion; none ends before")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--together", type=int, default=32, help="completions in a forward and backward pass")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job, run_dir = _job(given, Path(folder)), Path(folder) / "run"
        parts = _watch_memory()
        ppo.run(job, run_dir)
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    _report(device, [line for line in lines if "seconds/rollout" in line][1:], parts)


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


def _watch_memory() -> dict[str, float]:
    """Filled when training begins: megabytes of the weights, of those that train, and of their optimizer's moments."""
    parts: dict[str, float] = {}
    train = PpoTrainer.train

    def watched(self: PpoTrainer, *args: Any, **kwargs: Any) -> Any:
        weights = list(self.policy.parameters())
        trained = sum(w.numel() * w.element_size() for w in weights if w.requires_grad) / 1e6
        parts["weights"] = sum(w.numel() * w.element_size() for w in weights) / 1e6
        parts["gradients and moments"] = 3 * trained
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        return train(self, *args, **kwargs)

    PpoTrainer.train = watched  # type: ignore[method-assign]  # a look from outside
    return parts


def _report(device: str, updates: list[dict[str, float]], parts: dict[str, float]) -> None:
    print(f"machine: {torch.cuda.get_device_name() if device == 'cuda' else _processor()}")
    for name in ("rollout", "scoring", "update"):
        seconds = sum(line[f"seconds/{name}"] for line in updates) / len(updates)
        rate = sum(line[f"tokens_per_second/{name}"] for line in updates) / len(updates)
        print(f"{name:8} {seconds:8.2f} s   {rate:12,.0f} tokens/s")
    if device == "cuda":
        peak = {"peak on the device": torch.cuda.max_memory_allocated() / 1e6}
    else:
        peak = {"peak of the process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
    for name, size in (parts | {"sum of the parts": sum(parts.values())} | peak).items():
        print(f"{name:22} {size:10,.1f} MB")


def _processor() -> str:
    told = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return told[1] if told else platform.machine()


if __name__ == "__main__":
    main()
