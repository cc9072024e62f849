"""Completions per second, peak memory, weights held and reward reached of alignkit's GRPO, against TRL's trainer of it.

    python scripts/bench/grpo.py                              # groups of 8 answers of one length, by a random Llama
    python scripts/bench/grpo.py --only trl-lora lora --steps 30 --rounds 5 --learning-rate 1e-3    # enough to learn

How it is measured: `side_by_side.py`. Both sides ask the same prompts as many times each, pay for the same words by the
same Python function, and take one optimizer step an update, in float32, with the KL penalty in the loss, by k3 times
the ratio, as TRL has it by default. Ratios are only printed when both have made as many optimizer steps, as many
forward passes with a gradient, over as many completions, of as many tokens.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import made_policy
from ppo_watch import Watch
from side_by_side import Done, take_turns

VARIANTS = {
    "trl-lora": "TRL's GRPOTrainer: LoRA",
    "lora": "alignkit: LoRA",
    "trl-full": "TRL's GRPOTrainer: every weight",
    "full": "alignkit: every weight",
}
BASELINES = ("trl-lora", "trl-full")
CLIP, BETA, MAX_GRAD_NORM = 0.2, 0.04, 1.0
REWARD = """def liked(prompts, completions, **columns):
    \"\"\"The share of words of the first half of the alphabet.\"\"\"
    return [sum(word < "n" for word in text.split()) / max(1, len(text.split())) for text in completions]
"""
SETTINGS: dict[str, dict[str, Any]] = {
    "steps": {"type": int, "default": 4, "help": "number of updates"},
    "completions": {"type": int, "default": 32, "help": "completions in a rollout"},
    "generations": {"type": int, "default": 8, "help": "completions of each prompt"},
    "batch-size": {"default": 8, "help": "completions in a forward and backward pass"},
    "tokens": {"type": int, "default": 48, "help": "tokens of each answer"},
    "prompt-tokens": {"type": int, "default": 96, "help": "tokens of a prompt"},
    "learning-rate": {"type": float, "default": 1e-4, "help": "learning rate of both sides"},
}


def words_of(options: argparse.Namespace, *, lora: bool) -> list[str]:
    """The job, as it would be typed after `alignkit ppo`."""
    return [
        *("model.name=model", "model.dtype=float32", "template.file=template.jinja", "data.path=prompts.jsonl"),
        *("data.shuffle=false", "samples=0", "reward=[{function: 'reward.py:liked'}]", f"seed={options.round}"),
        *(f"ppo.num_updates={options.steps}", f"ppo.num_prompts={options.completions // options.generations}"),
        *("ppo.advantage=grpo", "ppo.kl_as=loss_unbiased", f"ppo.num_generations={options.generations}"),
        *("ppo.show_every=0", "ppo.num_ppo_epochs=1", "ppo.num_mini_batches=1"),
        *(f"ppo.kl_coef={BETA}", f"ppo.clip_range={CLIP}"),
        *(f"ppo.generation_batch_size={options.completions}", f"sampling.max_new_tokens={options.tokens}"),
        *(f"sampling.min_new_tokens={options.tokens}", f"train.per_device_train_batch_size={options.batch_size}"),
        *(f"train.learning_rate={options.learning_rate}", f"train.max_grad_norm={MAX_GRAD_NORM}"),
        *("train.lr_scheduler_type=constant", "train.save_strategy='no'", "train.report_to=none"),
        *(["lora=ppo"] if lora else []),
    ]


def prepare(work: Path, options: argparse.Namespace) -> None:
    """What `made_policy` makes, the reward, and, for TRL, the prompts as alignkit's template has them."""
    from alignkit.launch import compose_job
    from alignkit.stages.ppo.data import prepare

    options.lengths = "fixed"
    made_policy.prepare(work, options, reward_run=False)
    (work / "reward.py").write_text(REWARD)
    options.round = 0
    with contextlib.chdir(work):
        job = compose_job("ppo", words_of(options, lora=True))
        options.prompts = [list(prompt.ids) for prompt in prepare(job).data.train]
        options.lora = {name: job.lora[name] for name in ("r", "lora_alpha")}


def train(variant: str, options: argparse.Namespace) -> Done:
    watch = Watch(options.liked, lengths=options.lengths)
    side = train_with_trl if variant in BASELINES else train_with_alignkit
    side(options, watch, lora=variant.endswith("lora"))
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


def train_with_trl(options: argparse.Namespace, watch: Watch, *, lora: bool) -> None:
    """Train as the other side does, by TRL's names and in TRL's ways."""
    import runpy

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from alignkit.models.lora import attention_layers

    tokenizer = AutoTokenizer.from_pretrained("model", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    texts = [tokenizer.decode(ids) for ids in options.prompts]
    assert [tokenizer(text)["input_ids"] for text in texts] == options.prompts, "TRL reads the same prompts"
    args = GRPOConfig(
        "trl",
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.completions // options.batch_size,
        num_generations=options.generations,
        max_completion_length=options.tokens,
        generation_kwargs={"min_new_tokens": options.tokens},
        temperature=1.0,
        beta=BETA,
        epsilon=CLIP,
        loss_type="grpo",
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        shuffle_dataset=False,
        seed=options.round,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
    )
    liked = runpy.run_path("reward.py")["liked"]

    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        watch.add_completions(completion_ids)
        scores: list[float] = liked(prompts, completions)
        return scores

    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=attention_layers(policy), **options.lora)
    watch.forward(type(policy.base_model), lambda inputs: inputs["input_ids"])  # TRL brings a head of its own
    trainer = GRPOTrainer(
        policy,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        processing_class=tokenizer,
        peft_config=adapter if lora else None,
    )
    trainer.train()


if __name__ == "__main__":
    take_turns(str(__doc__), VARIANTS, BASELINES, "completions", prepare, train, None, settings=SETTINGS)
