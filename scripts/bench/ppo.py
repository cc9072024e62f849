"""Completions per second, peak memory, weights held and reward reached of `alignkit ppo`, against TRL's PPO trainer.

    python scripts/bench/ppo.py                      # answers of one length, by a random Llama of 20 M weights
    python scripts/bench/ppo.py --lengths mixed      # lengths drawn log-normally, the median a third of the longest
    python scripts/bench/ppo.py --only trl-lora lora --steps 40 --rounds 1 --learning-rate 1e-3    # enough to learn

TRL's PPO trainer ended with its version 1.12, as an experiment: that gets an environment of its own in `--env`, with
torch, transformers and peft as they are here. How it is measured: `side_by_side.py`. Both sides learn from the same
prompts and the same LoRA reward run, which likes the words of the first half of the alphabet, in float32. Ratios are
only printed when both have made as many optimizer steps, as many forward passes with a gradient, over as many
completions, of as many tokens. Mixed lengths are those that the prompts ask for, give or take a few tokens: their sums
may be 5 % apart. A `--model` of your own knows nothing of that, and ends where it likes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import made_policy
import trl_ppo
from ppo_watch import Watch
from side_by_side import Done, take_turns

VARIANTS = {
    "trl-lora": "TRL 1.12: LoRA",
    "lora": "alignkit: LoRA",
    "trl-full": "TRL 1.12: every weight",
    "full": "alignkit: every weight",
}
BASELINES = ("trl-lora", "trl-full")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "alignkit" / "trl-1.12"
SETTINGS: dict[str, dict[str, Any]] = {
    "lengths": {"choices": ("fixed", "mixed"), "default": "fixed", "help": "lengths of the answers"},
    "steps": {"type": int, "default": 4, "help": "number of updates"},
    "completions": {"type": int, "default": 16, "help": "completions in a rollout"},
    "batch-size": {"default": 8, "help": "completions in a forward and backward pass"},
    "tokens": {"type": int, "default": 64, "help": "tokens of the longest answer"},
    "prompt-tokens": {"type": int, "default": 16, "help": "tokens of a prompt"},
    "epochs": {"type": int, "default": 4, "help": "passes over a rollout, with an optimizer step each"},
    "learning-rate": {"type": float, "default": 1e-4, "help": "learning rate of both sides"},
    "env": {"type": Path, "default": CACHE, "help": "folder of the virtual environment with TRL 1.12"},
}


def words_of(options: argparse.Namespace, *, lora: bool) -> list[str]:
    """The job, as it would be typed after `alignkit ppo`."""
    shortest = options.tokens if options.lengths == "fixed" else 0
    return [
        *("model.name=model", "model.dtype=float32", "template.file=template.jinja", "data.path=prompts.jsonl"),
        *("data.shuffle=false", "samples=0", "reward=[{model: reward}]", f"seed={options.round}"),
        *(f"ppo.num_updates={options.steps}", f"ppo.num_prompts={options.completions}", "ppo.show_every=0"),
        *(f"ppo.num_ppo_epochs={options.epochs}", "ppo.num_mini_batches=1"),
        *(f"ppo.generation_batch_size={options.completions}", f"sampling.max_new_tokens={options.tokens}"),
        *(f"sampling.min_new_tokens={shortest}", f"train.per_device_train_batch_size={options.batch_size}"),
        *(f"train.learning_rate={options.learning_rate}", "train.save_strategy='no'", "train.report_to=none"),
        *(["lora=ppo"] if lora else []),
    ]


def prepare(work: Path, options: argparse.Namespace) -> None:
    """What `made_policy` makes, and, for TRL, the prompts as alignkit's template and tokenizer have them."""
    from alignkit.launch import compose_job
    from alignkit.stages.ppo.data import prepare

    made_policy.prepare(work, options)
    options.round = 0
    with contextlib.chdir(work):
        job = compose_job("ppo", words_of(options, lora=True))
        options.prompts = [list(prompt.ids) for prompt in prepare(job).data.train]


def train(variant: str, options: argparse.Namespace) -> Done:
    watch = Watch(options.liked, lengths=options.lengths)
    is_lora = variant.endswith("lora")
    if variant in BASELINES:
        trl_ppo.train(options, watch, lora=is_lora)
    else:
        train_with_alignkit(options, watch, lora=is_lora)
    last = watch.liked[-max(1, len(watch.liked) // 4) :]
    figures = {"backbones held": watch.num_weights / options.backbone}
    figures |= {"liked, first": watch.liked[0], "liked, last": sum(last) / len(last)}
    return Done(watch.works, figures)


def train_with_alignkit(options: argparse.Namespace, watch: Watch, *, lora: bool) -> None:
    from alignkit.launch import compose_job
    from alignkit.ppo.learner import Learner
    from alignkit.ppo.policy import Policy
    from alignkit.stages.ppo import run as ppo

    def learn(self: Any, model: Any, rollouts: Any, *rest: Any) -> Any:
        watch.add_completions([rollout.ids for rollout in rollouts])
        return upstream(self, model, rollouts, *rest)

    upstream, Learner.learn = Learner.learn, learn
    watch.forward(Policy, lambda rows: rows.input_ids_BL)
    ppo.run(compose_job("ppo", [*words_of(options, lora=lora), "overwrite=true"]), Path("run"))


def python_of(variant: str, options: argparse.Namespace) -> str | Path:
    if variant not in BASELINES:
        return sys.executable
    try:
        return trl_ppo.environment(options.env)
    except RuntimeError as error:
        print(f"skipped, for want of TRL 1.12 to compare with: {error} (alignkit alone: --only lora full)")
        sys.exit(0)


if __name__ == "__main__":
    take_turns(
        str(__doc__), VARIANTS, BASELINES, "completions", prepare, train, None, settings=SETTINGS, python=python_of
    )
