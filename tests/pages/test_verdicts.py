"""What is said of a training, by its metrics."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit.launch import compose_job
from alignkit.pages import verdicts
from alignkit.pages.verdicts import CHECKS, Measured, Verdict, examine, parts, points


def curve(**metrics: Sequence[float | None]) -> list[dict[str, Any]]:
    """The entries of metrics that were logged at steps 1, 2 and so on; `eval_` ones began at step 0."""
    entries = []
    for key, values in metrics.items():
        first = 0 if key.startswith("eval_") else 1
        entries += [{"step": step, key.replace("__", "/"): value} for step, value in enumerate(values, first)]
    return sorted(entries, key=lambda entry: entry["step"])


def verdict(stage: str, sign: str, *, kept_step: int | None = None, **metrics: Sequence[float | None]) -> Verdict:
    found = examine(Measured(stage, curve(**metrics), kept_step, max_kl=20.0))
    return next(one for one in found if one.sign == sign)


def test_a_held_out_loss_that_rises_while_the_training_loss_falls_is_overfitting() -> None:
    losses = {"loss": [2.0, 1.5, 1.0, 0.5, 0.1], "eval_loss": [2.1, 1.6, 1.4, 1.5, 1.7, 2.0]}
    found = verdict("sft", "overfitting", kept_step=2, **losses)
    assert found.seen == (
        "the held-out loss was lowest at step 2 (1.4) and rose to 2 by step 5, while the training loss fell from 1.5 "
        "to 0.1. Those weights were kept."
    )
    assert found.state == "found"
    assert "early_stopping" in found.advice


@pytest.mark.parametrize(
    ("held_out", "seen"),
    [
        ([2.1, 1.6, 1.4, 1.45], "the held-out loss was lowest at step 2 (1.4) and ends at 1.45"),
        ([2.1, 1.6, 1.4, 1.2], "the held-out loss was lowest at step 3 (1.2) and ends at 1.2"),
    ],
)
def test_a_held_out_loss_that_holds_is_fine(held_out: list[float], seen: str) -> None:
    assert verdict("sft", "overfitting", loss=[2.0, 1.0, 0.5], eval_loss=held_out) == Verdict(
        "overfitting", "fine", seen
    )


def test_the_worst_of_several_held_out_sets_is_named() -> None:
    found = verdict("dpo", "overfitting", loss=[1.0, 0.5, 0.1], eval_a_loss=[1.0, 0.9], eval_b_loss=[1.0, 2.0])
    assert (found.state, found.seen[:34]) == ("found", "the held-out loss of b was lowest ")


def test_without_held_out_rows_overfitting_cannot_be_told() -> None:
    assert verdict("sft", "overfitting", loss=[2.0, 1.0]).state == "unknown"


def test_a_loss_that_rises_with_the_training_loss_is_no_overfitting_but_a_learning_rate_too_high() -> None:
    losses = {"loss": [2.0, 4.0, 6.0, 8.0, 9.0], "eval_loss": [2.0, 4.0, 9.0]}
    assert verdict("sft", "overfitting", **losses).state == "fine"
    found = verdict("sft", "learning rate too high", **losses)
    assert found.state == "found"
    assert found.seen == "the training loss rose from 2 to 9 (means of a fifth of the steps)."


def test_a_loss_that_is_no_number_is_a_learning_rate_too_high() -> None:
    found = verdict("sft", "learning rate too high", loss=[2.0, 1.0, None])
    assert (found.state, found.seen) == ("found", "the training loss was not a finite number at step 3.")


def test_one_spike_is_none() -> None:
    losses = [2.0, 1.9] * 10 + [3.0] + [1.5, 1.6] * 10
    assert verdict("sft", "learning rate too high", loss=losses).state == "fine"


def test_a_loss_at_the_floor_from_the_start() -> None:
    found = verdict("sft", "loss at the floor from the start", loss=[0.001, 0.002, 0.001])
    assert found.state == "found"
    assert found.seen == "the training loss was 0.002 or less from step 1 on: there was nothing to learn."
    assert verdict("sft", "loss at the floor from the start", loss=[2.0, 0.01, 0.001]).state == "fine"


def test_a_loss_that_ends_where_it_began() -> None:
    assert verdict("sft", "no progress", loss=[2.0, 2.01, 1.99, 2.0, 1.98]).state == "found"
    assert verdict("sft", "no progress", loss=[2.0, 1.9, 1.8, 1.7, 1.6]).state == "fine"


def test_chosen_responses_that_become_less_likely() -> None:
    found = verdict("dpo", "chosen log-probability falling", eval_logps__chosen=[-50.0, -60.0])
    assert (found.state, found.seen) == (
        "found",
        "the log-probability of a chosen response went from -50 to -60 nats: the model says what it should say less "
        "often than before.",
    )
    assert verdict("dpo", "chosen log-probability falling", eval_logps__chosen=[-50.0, -54.0]).state == "fine"
    assert verdict("dpo", "chosen log-probability falling", logps__chosen=[-50.0, -40.0, -90.0]).state == "found"


def test_completions_that_grow() -> None:
    found = verdict(
        "ppo", "length growth", rollout__length=[10, 12, 20, 30, 40], rollout__eos_fraction=[1, 1, 1, 1, 0.9]
    )
    assert (found.state, found.seen) == (
        "found",
        "completions went from 10 to 40 tokens, and 90% of them end by themselves (100% at the start).",
    )
    assert verdict("ppo", "length growth", rollout__length=[2, 4, 6, 8, 9]).state == "fine"  # tripled, by seven tokens
    no_end = {"rollout__length": [14, 15, 15, 16, 16], "rollout__eos_fraction": [0.8, 0.5, 0.3, 0.2, 0.1]}
    assert verdict("ppo", "length growth", **no_end).state == "found"


def test_a_policy_that_left_its_reference() -> None:
    far = verdict("ppo", "KL", objective__kl=[0.0, 10.0, 25.0], objective__kl_per_token=[0.0, 0.1, 0.2])
    assert far.state == "found"
    assert "25 nats a completion from its reference, 0.2 a token, and ppo.max_kl is 20" in far.seen
    assert verdict("ppo", "KL", objective__kl=[0.0, 5.0], objective__kl_per_token=[0.0, 0.1]).state == "fine"
    assert verdict("ppo", "KL", objective__score=[1.0, 2.0]).state == "unknown"


def test_an_entropy_that_collapses() -> None:
    found = verdict("ppo", "entropy collapse", objective__entropy=[2.0, 1.0, 0.1])
    assert (found.state, found.advice[:17]) == ("found", "Raise ppo.kl_coef")
    assert verdict("ppo", "entropy collapse", objective__entropy=[2.0, 1.0, 0.3]).state == "fine"


def test_a_training_score_that_rises_while_the_held_out_score_falls() -> None:
    scores = {"objective__score": [1.0, 2.0, 3.0, 4.0], "eval_score": [1.0, 1.5, 2.0, 1.5, 0.5]}
    sign = "training score up, held-out score down"
    assert verdict("ppo", sign, **scores, eval_score_se=[0.1] * 5).seen == (
        "the held-out score was highest at update 2 (2) and fell to 0.5, while the training score rose from 2 to 4."
    )
    assert verdict("ppo", sign, **scores, eval_score_se=[1.0] * 5).state == "fine"  # within two standard errors


def test_updates_that_move_the_policy_too_far() -> None:
    steps = {"policy__clip_fraction": [0.5, 0.6], "policy__approx_kl": [0.02, 0.04]}
    assert verdict("ppo", "learning rate too high", **steps).state == "found"
    steps["policy__clip_fraction"] = [0.1, 0.2]
    assert verdict("ppo", "learning rate too high", **steps).state == "fine"


def test_scores_that_are_all_alike() -> None:
    sign = "nothing to tell completions apart"
    assert verdict("ppo", sign, objective__score_std=[0.0, 0.0, 0.3]).state == "found"
    assert verdict("ppo", sign, objective__score_std=[0.0, 0.2, 0.3]).state == "fine"


def test_a_reward_model_that_only_counts_tokens() -> None:
    card = {"accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}, "longer_wins": {"value": 0.65}}
    (found,) = (one for one in examine(Measured("reward", [], cards={"eval": card})) if one.state == "found")
    assert found.seen == "accuracy is 70.0% (60.0% to 80.0%), that rule 65.0%."


@pytest.mark.parametrize("stage", CHECKS)
def test_nothing_is_claimed_of_a_run_that_has_measured_nothing(stage: str) -> None:
    assert {one.state for one in examine(Measured(stage, []))} == {"unknown"}
    assert {one.state for one in examine(Measured(stage, [{"step": 0, "loss": "no"}, {"loss": 1.0}]))} == {"unknown"}


def test_a_figure_is_looked_at_in_fifths() -> None:
    assert parts([(step, float(step)) for step in range(10)]) == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert parts([(1, 1.0), (2, 5.0)]) == [1.0, 5.0]
    assert parts([]) == []
    assert points([{"step": 1, "a": float("inf")}, {"step": 2, "a": 3}, {"a": 4}], "a") == [(2, 3.0)]


# Every setting that advice names, as a person may type it.
TYPED = {
    "sft": [
        *("early_stopping=3", "train.eval_strategy=steps", "train.warmup_steps=10", "train.learning_rate=1e-5"),
        *("data.eval_fraction=0.1", "data.eval_path=null", "lora=all_linear", "lora.target_modules=[c_attn]"),
    ],
    "dpo": ["train.loss_type=[sigmoid,sft]", "train.beta=0.5"],
    "ppo": [
        *("ppo.target_kl=0.1", "ppo.kl_target=5", "ppo.entropy_coef=0.01", "ppo.overlong={}", "ppo.kl_coef=0.1"),
        *("ppo.num_ppo_epochs=2", "ppo.missing_eos_penalty=1", "ppo.max_kl=20", "sampling.temperature=0.9"),
    ],
}


@pytest.mark.parametrize(("stage", "words"), TYPED.items(), ids=TYPED)
def test_what_advice_names_can_be_typed(stage: str, words: list[str]) -> None:
    data = "demo_pairs" if stage == "dpo" else "demo"
    assert compose_job(stage, ["model=tiny_gpt2", f"data={data}", *words]).name


def test_no_advice_names_another_setting() -> None:
    source = Path(verdicts.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:train|ppo|data|sampling|lora)\.[a-z_]+", source))
    assert named == {word.partition("=")[0] for words in TYPED.values() for word in words if "." in word.split("=")[0]}
