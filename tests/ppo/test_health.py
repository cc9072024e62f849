"""Signs of divergence, each reported once and in words."""

from alignkit.ppo.health import HealthMonitor


def metrics(**found: float) -> dict[str, float]:
    base = {"kl": 1.0, "entropy": 2.0, "length": 10.0, "score": 0.0, "std": 1.0, "flat": 0.5} | found
    return {
        "objective/score_std": base["std"],
        "group/flat_fraction": base["flat"],
        "objective/kl": base["kl"],
        "objective/entropy": base["entropy"],
        "objective/score": base["score"],
        "rollout/length": base["length"],
    }


def watched() -> HealthMonitor:
    health = HealthMonitor(max_kl=20.0, max_new_tokens=64)
    assert health.check_update(metrics()) == []
    return health


def test_a_policy_that_left_its_reference() -> None:
    health = watched()
    (line,) = health.check_update(metrics(kl=21.0))
    assert line.startswith("the KL is 21 nats a completion, above ppo.max_kl=20")
    assert health.check_update(metrics(kl=22.0)) == []


def test_an_entropy_that_collapsed() -> None:
    (line,) = watched().check_update(metrics(entropy=0.1))
    assert line.startswith("the entropy fell from 2 to 0.1 nats a token")


def test_completions_that_run_into_the_limit() -> None:
    (line,) = watched().check_update(metrics(length=63.0))
    assert line.startswith("completions grew from 10 to 63 tokens and reach sampling.max_new_tokens=64")


def test_rewards_that_are_all_alike_in_three_updates_in_a_row() -> None:
    for health, alike in (
        (HealthMonitor(20.0, 64, compares_group=True), {"flat": 1.0}),
        (HealthMonitor(20.0, 64), {"std": 0.0}),
    ):
        said = [health.check_update(metrics(**found)) for found in (alike, alike, {}, alike, alike)]
        assert said == [[]] * 5
        again = HealthMonitor(20.0, 64, compares_group=health.compares_group)
        again.load_state_dict(health.state_dict())
        (line,) = again.check_update(metrics(**alike))
        who = "the completions of each prompt" if health.compares_group else "all completions"
        assert line.startswith(f"in 3 updates in a row {who} had one reward: there is nothing to learn")


def test_without_a_reference_there_is_no_kl_to_watch() -> None:
    found = {key: value for key, value in metrics().items() if key != "objective/kl"}
    assert HealthMonitor(None, 64).check_update(found) == []


def test_prompts_learnt_by_heart() -> None:
    health, said = watched(), []
    for trained, held_out in ((1.0, 5.0), (2.0, 4.0), (3.0, 3.0)):
        health.check_update(metrics(score=trained))
        said += health.check_evaluation(held_out)
    (line,) = said
    assert line.startswith("the training score rose to 3 while the held-out score fell to 3, over 3 evaluations")


def test_a_score_that_was_never_measured_does_not_rise() -> None:
    health = HealthMonitor(max_kl=20.0, max_new_tokens=64)
    assert health.check_evaluation(0.9) == []  # before the first update
    said = []
    for trained, held_out in ((0.8, 0.88), (0.82, 0.86)):
        health.check_update(metrics(score=trained))
        said += health.check_evaluation(held_out)
    assert said == []


def test_what_was_reported_stays_reported_after_a_resume() -> None:
    health = watched()
    health.check_update(metrics(kl=21.0))
    again = HealthMonitor(max_kl=20.0, max_new_tokens=64)
    again.load_state_dict(health.state_dict())
    assert again.check_update(metrics(kl=30.0)) == []
    assert len(again.check_update(metrics(entropy=0.01))) == 1
