"""PPO learns: a random model comes to say one letter only, which is what it is paid for."""

import json
import os
from pathlib import Path

import pytest

from alignkit.launch import compose_job
from alignkit.stages import ppo

LENGTH = 8
WORDS = [
    *("model=tiny_gpt2", "data=demo", "data.eval_path=null", "data.limit=32", "template=instruction", "samples=0"),
    *(
        "reward=[{function: 'alignkit.demo.rewards:count_a'}]",
        "ppo.kl_coef=0",
        "ppo.entropy_coef=0.02",
        "ppo.show_every=0",
    ),
    *("ppo.num_prompts=32", "ppo.num_mini_batches=2", "train.per_device_train_batch_size=16"),
    *("ppo.num_updates=40", "train.learning_rate=2e-3", "train.report_to=none", f"sampling.max_new_tokens={LENGTH}"),
]


def scores(seed: int, folder: Path, *more: str) -> list[float]:
    ppo.run(compose_job("ppo", [*WORDS, f"seed={seed}", *more]), folder / str(seed))
    lines = [json.loads(line) for line in (folder / str(seed) / "metrics.jsonl").read_text().splitlines()]
    return [line["objective/score"] for line in lines if "objective/score" in line]


def test_a_toy_reward_is_learnt(tmp_path: Path) -> None:
    found = scores(1, tmp_path)
    assert found[0] < 0.05 * LENGTH
    assert found[-1] >= 0.9 * LENGTH


@pytest.mark.skipif("ALIGNKIT_TEST_SEEDS" not in os.environ, reason="minutes: ALIGNKIT_TEST_SEEDS=1 runs all seeds")
def test_a_toy_reward_is_learnt_on_at_least_four_of_five_seeds(tmp_path: Path) -> None:
    last = [scores(seed, tmp_path, "ppo.num_updates=60")[-1] for seed in range(5)]
    assert sum(score >= 0.9 * LENGTH for score in last) >= 4, last
