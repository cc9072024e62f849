"""How far a reward that is checked takes a tiny model that adds two-digit numbers half right.

    python scripts/bench/sums.py                          # SFT, then GRPO: some ten minutes
    python scripts/bench/sums.py --only grpo rloo         # both from the same SFT run

SFT on sums is broken off where about half of its answers are right. PPO then draws answers to other sums, and
`verifier: exact` pays 1 for a right one and 0 for a wrong one. The held-out problems are in neither. Answers are drawn
at temperature 1; the intervals (95 %, Wilson's) are over the problems.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import tempfile
from pathlib import Path

from alignkit.estimators import ESTIMATORS
from alignkit.evaluate.statistics import rate_interval
from alignkit.launch import launch

HELD_OUT, TAUGHT, COMPLETIONS, GROUP = 500, 4_000, 512, 8
SFT = [
    *("name=half", "model=tiny_gpt2", "template=plain", "data.path=taught.jsonl", "samples=0", "train.report_to=none"),
    *("train.per_device_train_batch_size=128", "train.learning_rate=2e-3", "train.save_strategy='no'"),
]
PPO = [
    *("model.name=runs/sft/half", "lora=none", "template=plain", "data.path=asked.jsonl", "data.eval_path=held.jsonl"),
    *("reward=[{verifier: exact, answer: completion, batch_size: 1000}]", "sampling.max_new_tokens=5", "samples=0"),
    *("ppo.num_ppo_epochs=1", "ppo.num_mini_batches=1", "ppo.kl_coef=0", "ppo.show_every=0"),
    *("ppo.generation_batch_size=512", "train.per_device_train_batch_size=512", "train.report_to=none"),
    *("train.lr_scheduler_type=constant_with_warmup", "train.warmup_steps=20", "train.eval_on_start=true"),
    *("train.save_strategy='no'", "train.load_best_model_at_end=false"),
]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft-steps", type=int, default=170, help="steps of SFT, of 128 sums; default 170")
    parser.add_argument("--updates", type=int, default=800, help=f"updates of {COMPLETIONS} answers; default 800")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of PPO; default 2e-4")
    parser.add_argument("--only", nargs="+", choices=[*ESTIMATORS], default=["grpo"], help="estimators; default grpo")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_problems()
        launch("sft", [*SFT, f"train.max_steps={given.sft_steps}"])
        for name in given.only:
            print(name, train(name, given.updates, given.learning_rate), flush=True)


def write_problems() -> None:
    """Write all 8,100 sums, cut into those that SFT, PPO and neither sees."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(0).shuffle(pairs)
    rows = [json.dumps({"prompt": f"{a}+{b}=", "completion": str(a + b)}) + "\n" for a, b in pairs]
    cuts = {"held": rows[:HELD_OUT], "taught": rows[HELD_OUT:][:TAUGHT], "asked": rows[HELD_OUT + TAUGHT :]}
    for name, cut in cuts.items():
        Path(f"{name}.jsonl").write_text("".join(cut))


def train(name: str, updates: int, learning_rate: float) -> str:
    """Train from the SFT run; the share of right answers before, at each quarter of the way and after."""
    size = GROUP if ESTIMATORS[name].compares_group else 1
    sizes = [f"ppo.num_updates={updates}", f"ppo.num_prompts={COMPLETIONS // size}", f"ppo.num_generations={size}"]
    rest = [f"ppo.advantage={name}", f"train.learning_rate={learning_rate}", f"train.eval_steps={updates // 4}"]
    launch("ppo", [f"name={name}", *PPO, *sizes, *rest])
    return shares(Path("runs/ppo", name), HELD_OUT)


def shares(run_dir: Path, number: int) -> str:
    """Write the share of right answers to a number of held-out problems at each evaluation, with its interval."""
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [rate_interval(entry["eval_score"] * number, number) for entry in logged if "eval_score" in entry]
    return " → ".join(f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})" for rate in found)


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
