"""How many completions each estimator of advantages needs to learn a toy reward, and what it keeps to train.

    python scripts/bench/estimators.py                          # 60 runs of some seconds each
    python scripts/bench/estimators.py --only grpo rloo --seeds 3

A random tiny model is paid for each letter "a" of a completion of 8 tokens, of which it says none at first. All
estimators get as many completions an update, those that compare a group 8 of each prompt; nothing else differs, and
what is not said here is alignkit's default. A seed has learned when the mean score of an update is 95 % of the most;
the held-out score is that of the last update, on prompts that were never asked, and its interval (95 %, Student's) is
over the seeds. Trained state is the weights that train, with their gradients and the optimizer's two moments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from alignkit.estimators import ESTIMATORS
from alignkit.evaluate.statistics import expectation

LENGTH, COMPLETIONS, GROUP, ENOUGH = 8, 32, 8, 0.95
NUM_PROMPTS, HELD_OUT = 96, 2 / 3
WORDS = [
    *("model=tiny_gpt2", "template=instruction", "data.path=rows.jsonl", "data.prompt_length={min: 2, max: 8}"),
    *(f"data.eval_fraction={HELD_OUT}", "samples=0", "reward=[{function: 'alignkit.demo.rewards:count_a'}]"),
    *(f"sampling.max_new_tokens={LENGTH}", "ppo.num_ppo_epochs=2", "ppo.num_mini_batches=2", "ppo.kl_coef=0"),
    *("ppo.show_every=0", "train.per_device_train_batch_size=16", "train.learning_rate=2e-3", "train.report_to=none"),
    *("train.save_strategy='no'", "train.load_best_model_at_end=false", "overwrite=true"),
]


@dataclass(frozen=True)
class Found:
    """What a run came to.

    Attributes:
        needed: completions until it had learned; None where it never did.
        held_out: mean score of the held-out prompts after the last update.
        state: bytes of trained weights, gradients and moments.
        scores: of each update.
    """

    needed: int | None
    held_out: float
    state: int
    scores: list[float]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds; default 10")
    parser.add_argument("--updates", type=int, default=32, help=f"updates of {COMPLETIONS} completions; default 32")
    parser.add_argument("--only", nargs="+", choices=[*ESTIMATORS], default=[*ESTIMATORS], help="leave the others out")
    parser.add_argument("--json", type=Path, help="write the figures of every run here")
    parser.add_argument("words", nargs="*", help="settings of all runs, such as ppo.entropy_coef=0.02")
    given = parser.parse_args()
    found: dict[str, list[Found]] = {}
    for name in given.only:
        found[name] = []
        for seed in range(given.seeds):
            found[name].append(run(name, seed, given.updates, given.words))
            print(f"{name}, seed {seed}: {found[name][-1].held_out:.2f} of {LENGTH}", flush=True)
            if given.json:
                given.json.write_text(json.dumps({key: [asdict(one) for one in runs] for key, runs in found.items()}))
    print(f"\n{'':20}{'learned':>12}{'completions (range)':>28}{'held out (95 %)':>22}{'trained state':>16}")
    for name, runs in found.items():
        print(line(name, runs))


def run(name: str, seed: int, updates: int, words: Sequence[str]) -> Found:
    """Train once."""
    from transformers import TrainerCallback  # these take seconds, which --help need not

    from alignkit.launch import compose_job
    from alignkit.stages.ppo import run as ppo

    class TrainedState(TrainerCallback):
        num_bytes = 0

        def on_train_end(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            self.num_bytes = trained_state(optimizer)

    size = GROUP if ESTIMATORS[name].compares_group else 1
    sizes = [f"ppo.num_updates={updates}", f"ppo.num_prompts={COMPLETIONS // size}", f"ppo.num_generations={size}"]
    rest = [f"ppo.advantage={name}", f"train.eval_steps={updates}", f"seed={seed}", *words]
    state = TrainedState()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        rows = [{"text": f"The {number} of us are here."} for number in range(NUM_PROMPTS)]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        ppo.run(compose_job("ppo", [*WORDS, *sizes, *rest]), Path("run"), callbacks=[state])
        logged = [json.loads(entry) for entry in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = [entry["objective/score"] for entry in logged if "objective/score" in entry]
    held_out = [entry["eval_score"] for entry in logged if "eval_score" in entry]
    reached = [index for index, score in enumerate(scores) if score >= ENOUGH * LENGTH]
    needed = (reached[0] + 1) * COMPLETIONS if reached else None
    return Found(needed, held_out[-1], state.num_bytes, scores)


def trained_state(optimizer: Any) -> int:
    """Count the bytes of the weights that an optimizer holds, of their gradients and of its moments."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    tensors = [*weights, *weights]  # a gradient is as large as its weight
    tensors += [optimizer.state[weight][name] for weight in weights for name in ("exp_avg", "exp_avg_sq")]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def line(name: str, runs: Sequence[Found]) -> str:
    """Return the estimator's line of the table."""
    needed = [one.needed for one in runs if one.needed is not None]
    cost = f"{median(needed):,.0f} ({min(needed):,} to {max(needed):,})" if needed else "-"
    mean = expectation([[one.held_out] for one in runs])
    score = f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f})"
    learned = f"{len(needed)} of {len(runs)}"
    return f"{name:20}{learned:>12}{cost:>28}{score:>22}{runs[0].state / 1e6:>13.2f} MB"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
