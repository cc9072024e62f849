"""How far a reward that is checked takes a pretrained model at short sums: SFT, then GRPO, both by LoRA.

    python scripts/bench/arithmetic.py                        # SmolLM2-135M: an hour of one core
    python scripts/bench/arithmetic.py FOLDER --updates 40    # a model folder, for a shorter time

There are 810 sums of a number of two digits and one of one digit. SFT sees 210 of them; PPO then draws answers to 300
others, for which `verifier: math` pays 1 where the answer is right and 0 where it is not. The 300 held-out sums are in
neither. Answers are drawn at temperature 1; the intervals (95 %, Wilson's) are over the sums. All is in bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import tempfile
from pathlib import Path

from sums import shares

from alignkit.launch import launch

HELD_OUT, TAUGHT, PROMPTS, GROUP = 300, 210, 8, 8
SFT = [
    *("name=taught", "model=run", "lora=all_linear", "template=native", "data.path=taught.jsonl", "samples=0"),
    *("train.per_device_train_batch_size=16", "train.learning_rate=1e-3", "train.save_strategy='no'"),
]
PPO = [
    *("name=rewarded", "model=run", "model.name=runs/sft/taught", "lora=none", "template=native"),
    *("data.path=asked.jsonl", "data.eval_path=held.jsonl", "reward=[{verifier: math, answer: answer}]"),
    *("sampling.max_new_tokens=6", "samples=0", "ppo.advantage=grpo", "ppo.kl_coef=0", "ppo.show_every=0"),
    *(f"ppo.num_prompts={PROMPTS}", f"ppo.num_generations={GROUP}", "ppo.num_ppo_epochs=1", "ppo.num_mini_batches=1"),
    *("ppo.generation_batch_size=64", f"train.per_device_train_batch_size={PROMPTS * GROUP}"),
    *("train.lr_scheduler_type=constant_with_warmup", "train.warmup_steps=5", "train.eval_on_start=true"),
    *("train.save_strategy='no'", "train.load_best_model_at_end=false"),
]
BOTH = ["model.dtype=bfloat16", "train.report_to=none"]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="default SmolLM2-135M")
    parser.add_argument("--epochs", type=float, default=4, help="epochs of SFT; default 4")
    parser.add_argument("--updates", type=int, default=120, help=f"updates of {PROMPTS * GROUP} answers; default 120")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of PPO; default 1e-4")
    given = parser.parse_args()
    model = Path(given.model).resolve() if Path(given.model).is_dir() else given.model
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_sums()
        launch("sft", [*SFT, *BOTH, f"model.name={model}", f"train.num_train_epochs={given.epochs}"])
        evals = f"train.eval_steps={max(1, given.updates // 4)}"
        rest = [f"ppo.num_updates={given.updates}", f"train.learning_rate={given.learning_rate}", evals]
        launch("ppo", [*PPO, *BOTH, *rest])
        print("grpo", shares(Path("runs/ppo/rewarded"), HELD_OUT), flush=True)


def write_sums() -> None:
    """Write the sums, cut into those that SFT, PPO and neither sees."""
    pairs = [(a, b) for a in range(10, 100) for b in range(1, 10)]
    random.Random(0).shuffle(pairs)
    asked = [(f"What is {a} + {b}?", str(a + b)) for a, b in pairs]
    rows = [{"prompt": prompt, "completion": answer, "answer": answer} for prompt, answer in asked]
    lines = [json.dumps(row) + "\n" for row in rows]
    cuts = {"held": lines[:HELD_OUT], "taught": lines[HELD_OUT:][:TAUGHT], "asked": lines[HELD_OUT + TAUGHT :]}
    for name, cut in cuts.items():
        Path(f"{name}.jsonl").write_text("".join(cut))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
