"""PPO learns: a random model comes to say one letter only, which is what it is paid for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkit.launch import compose_job
from alignkit.stages.ppo import run as ppo

LENGTH = 8
WORDS = [
    *("model=tiny_gpt2", "template=instruction", "data.path=rows.jsonl", "data.prompt_length={min: 2, max: 8}"),
    *("samples=0", "reward=[{function: 'alignkit.demo.rewards:count_a'}]", f"sampling.max_new_tokens={LENGTH}"),
    *("ppo.num_updates=32", "ppo.num_prompts=32", "ppo.num_ppo_epochs=2", "ppo.num_mini_batches=2"),
    *("ppo.kl_coef=0", "ppo.entropy_coef=0.02", "ppo.show_every=0"),
    *("train.per_device_train_batch_size=16", "train.learning_rate=2e-3", "train.report_to=none"),
    "train.save_strategy='no'",
]


@pytest.mark.slow
def test_a_toy_reward_is_learnt_on_at_least_four_of_five_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows([{"text": f"The {number} of us are here."} for number in range(32)])
    scores = [_scores(seed, tmp_path) for seed in range(5)]
    assert all(found[0] < 0.05 * LENGTH for found in scores), scores
    assert sum(found[-1] >= 0.9 * LENGTH for found in scores) >= 4, [found[-1] for found in scores]


def _scores(seed: int, folder: Path) -> list[float]:
    """The mean score of each update."""
    ppo.run(compose_job("ppo", [*WORDS, f"seed={seed}"]), folder / str(seed))
    lines = [json.loads(line) for line in (folder / str(seed) / "metrics.jsonl").read_text().splitlines()]
    return [line["objective/score"] for line in lines if "objective/score" in line]
