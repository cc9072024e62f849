"""TRL's last PPO trainer, which the TRL that alignkit uses no longer has: its environment, and a run of it."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ppo_watch import Watch

TRL = "trl==1.12.*"
SAME = ("torch", "transformers", "peft", "accelerate", "datasets")  # as here: the two sides differ in TRL alone


def environment(folder: Path) -> Path:
    """Return the interpreter of a virtual environment with TRL 1.12, which is made where there is none yet.

    Raises:
        RuntimeError: it cannot be made here; the message is a line.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making an environment for {TRL} in {folder}", flush=True)
        _run(sys.executable, "-m", "venv", "--clear", folder)
    wanted = [TRL, *(f"{name}=={version(name).split('+')[0]}" for name in SAME)]
    # pip skips what is installed already; after an update here, the other side follows
    _run(python, "-m", "pip", "install", "--quiet", *wanted)
    _run(python, "-c", "import trl.experimental.ppo, peft")
    return python


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"{command[1:4]} failed")


def train(options: argparse.Namespace, watch: Watch, *, lora: bool) -> None:
    """Train with the same rollouts, passes and forward passes as the other side, by TRL's names and in TRL's ways.

    TRL takes one optimizer step in a pass over the rollout, however many minibatches it is told to make.
    """
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    tokenizer = AutoTokenizer.from_pretrained("model", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    reward = AutoPeftModelForSequenceClassification.from_pretrained("reward", num_labels=1, dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained("model", num_labels=1, dtype=torch.float32)
    args = PPOConfig(
        "trl",
        total_episodes=options.completions * options.steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.completions // options.batch_size,
        local_rollout_forward_batch_size=options.completions,
        num_ppo_epochs=options.epochs,
        num_mini_batches=1,
        response_length=options.tokens,
        stop_token=None if options.lengths == "fixed" else "eos",
        temperature=1.0,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        seed=options.round,
        num_sample_generations=0,
        save_strategy="no",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward.merge_and_unload(),
        value_model=value,
        train_dataset=[{"input_ids": ids} for ids in options.prompts],
        peft_config=_like(reward.peft_config["default"]) if lora else None,
    )
    collate, size = DataCollatorWithPadding(tokenizer), options.completions
    # the prompts in their order; and accelerate's own loader would step after every forward pass of its last batch
    trainer.dataloader = [
        collate([{"input_ids": ids} for ids in options.prompts[start : start + size]])
        for start in range(0, len(options.prompts), size)
    ]
    watch.forward(ppo_trainer.PolicyAndValueWrapper, lambda inputs: inputs["input_ids"])

    def generate(*given: Any) -> Any:
        found = upstream(*given)
        answers = found[0][:, given[1].shape[1] :].tolist()
        watch.add_completions([_until(answer, tokenizer.pad_token_id) for answer in answers])
        return found

    upstream, ppo_trainer.batch_generation = ppo_trainer.batch_generation, generate
    trainer.train()


def _like(adapter: Any) -> Any:
    """The adapter of the policy: both runs of the other side take `lora=ppo`."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", **{name: getattr(adapter, name) for name in ("r", "lora_alpha", "target_modules")}
    )


def _until(ids: list[int], pad_id: int) -> list[int]:
    return ids[: ids.index(pad_id)] if pad_id in ids else ids
