"""A small project with a chain of four steps, and everything that they are made of in files of its own."""

import json
import os
from pathlib import Path

from alignkit.launch import launch

WORDS = ["one", "two", "three", "four", "five", "six"]
SMALLER = ["model=tiny_gpt2", "model.config.n_layer=1", "model.config.n_embd=32", "model.config.n_inner=32"]
PIPELINE = """\
# a comment
name: chain
steps:
  sft:
    stage: sft
    model: {name: runs/sft/base}
    data: {path: rows.jsonl, eval_fraction: 0.25, limit: 40}
    template: {file: mine.jinja}
    samples: 1
    sampling: {max_new_tokens: 4}
    train: &train {max_steps: 12, save_steps: 2, logging_steps: 1, per_device_train_batch_size: 4, report_to: none}
  reward:
    stage: reward
    model: {name: "${run:sft}"}
    data: {path: pairs.jsonl, eval_fraction: 0.25}
    train: *train
  ppo:
    stage: ppo
    model: {name: "${run:sft}"}
    data: {path: prompts.jsonl, eval_fraction: 0.25}
    reward:
      - model: ${run:reward}
      - function: rewards.py:short
    sampling: {max_new_tokens: 4}
    samples: 1
    ppo: {num_updates: 6, num_prompts: 4, num_mini_batches: 1, num_ppo_epochs: 1}
    train: {save_steps: 1, per_device_train_batch_size: 4, report_to: none}
  evaluate:
    command: evaluate
    models: ["${run:sft}", "${run:ppo}"]
    reward: rewards.py:short
    num_prompts: 2
    num_samples: 1
    sampling: {max_new_tokens: 4}
"""
TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}
{%- else -%}
Q: {{ message['content'] }} A:
{%- endif -%}
{%- endfor -%}
"""
REWARDS = """\
from lengths import length


def short(prompts, completions, **columns):
    return [-length(completion) / 10 for completion in completions]
"""


def write_project(folder: Path) -> None:
    rows = [{"instruction": f"Say {a} and {b}.", "output": f"{a}, {b}"} for a in WORDS for b in WORDS]
    pairs = [{"prompt": f"Say {a} and {b}.", "chosen": f"{a}, {b}", "rejected": a} for a in WORDS for b in WORDS]
    prompts = [{"prompt": f"Say {a}."} for a in WORDS] * 2
    for name, content in (("rows", rows), ("pairs", pairs), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "chain.yaml").write_text(PIPELINE)
    (folder / "mine.jinja").write_text(TEMPLATE)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "lengths.py").write_text("def length(text):\n    return len(text)\n")


def make_project(folder: Path) -> None:
    """Write the project, and train the base model that its chain starts from."""
    write_project(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        launch("sft", ["name=base", *SMALLER, "data.path=rows.jsonl", "samples=0", "train.max_steps=1"])
    finally:
        os.chdir(before)
