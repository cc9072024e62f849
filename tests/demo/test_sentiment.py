"""The sentiment example without a download: reviews that ship, and the three recipes one after the other."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from alignkit.data.files.shipped import shipped_file
from alignkit.launch import compose_job

RECIPES = Path(__file__).parents[2] / "configs" / "reviews"
FEWER = {
    "sft": ["train.max_steps=120", "samples=0"],
    "reward": ["train.max_steps=30"],
    "ppo": [
        *("ppo.num_updates=8", "train.eval_steps=8", "train.learning_rate=5e-4", "sampling.max_new_tokens=32"),
        *("ppo.kl_coef=0.1", "samples=1", "data.limit=200"),
    ],
}


def rows(name: str) -> list[dict[str, str]]:
    text = shipped_file(name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_held_out_reviews_are_no_training_reviews() -> None:
    trained = {row["text"] for row in rows("reviews.jsonl")}
    held_out = {row["text"] for row in rows("heldout_reviews.jsonl")}
    assert (len(trained), len(held_out)) == (800, 100)
    assert not trained & held_out
    sides = {row["prompt"] + row[side] for row in rows("review_pairs.jsonl") for side in ("chosen", "rejected")}
    assert not sides & held_out


@pytest.mark.slow
def test_reviews_become_prompts_answers_scores_and_better_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for stage, words in FEWER.items():
        job = compose_job(stage, [f"config={RECIPES / stage}.yaml", "train.report_to=none", *words])
        import_module(f"alignkit.stages.{stage}.run").run(job, Path("runs") / stage / job.name)
    lines = [json.loads(line) for line in Path("runs/ppo/reviews-ppo/metrics.jsonl").read_text().splitlines()]
    before, *_, after = [line for line in lines if "eval_score" in line]
    assert after["eval_score"] > before["eval_score"] + 3 * before["eval_score_se"]
    rollouts = [json.loads(line) for line in Path("runs/ppo/reviews-ppo/rollouts.jsonl").read_text().splitlines()]
    assert {len(rollout["prompt"]) for rollout in rollouts} <= set(range(2, 9))
