"""What a job is told to lower where memory runs out: nothing that it has not, nothing that is as low as can be."""

from typing import Any

import pytest

from alignkit.launch import compose_job
from alignkit.stages.shortage import what_to_lower

ROWS = "train.per_device_train_batch_size (and raise train.gradient_accumulation_steps as much)"
CHECKPOINTING, LORA = "train.gradient_checkpointing=true", "lora=default"


@pytest.mark.parametrize(
    ("stage", "words", "said"),
    [
        ("sft", [], f"lower {ROWS}, data.max_length or sampling.max_new_tokens, or take {CHECKPOINTING} or {LORA}"),
        ("sft", ["samples=0", "lora=default"], f"lower {ROWS} or data.max_length, or take {CHECKPOINTING}"),
        (
            "sft",
            ["samples=0", "train.dataloader_num_workers=2", "train.per_device_train_batch_size=1"],
            f"lower train.dataloader_num_workers or data.max_length, or take {CHECKPOINTING} or {LORA}",
        ),
        (
            "reward",
            ["train.per_device_train_batch_size=1", "lora=default", "train.gradient_checkpointing=true"],
            "lower data.max_length",
        ),
        ("dpo", [], f"lower {ROWS}, data.max_length or sampling.max_new_tokens, or take {CHECKPOINTING} or {LORA}"),
        (
            "ppo",
            ["samples=0", "lora=ppo"],
            "lower train.per_device_train_batch_size, ppo.generation_batch_size or sampling.max_new_tokens, or take "
            f"{CHECKPOINTING}",
        ),
    ],
)
def test_what_is_named_is_there_and_would_help(stage: str, words: list[str], said: str) -> None:
    job: Any = compose_job(stage, ["model=tiny_gpt2", "data.path=rows.jsonl", *words])
    assert what_to_lower(job) == said
