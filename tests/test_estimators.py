"""What each estimator of advantages fills in, and what it leaves null."""

import pytest

from alignkit.choices import Advantage, KlAs, LossOver
from alignkit.config import PpoConfig
from alignkit.estimators import ESTIMATORS, settle

NULL = {name for name, value in vars(PpoConfig()).items() if value is None}
OWN = {"kl_as", "loss_over", "gamma", "lam", "vf_coef", "clip_range_value", "whiten_advantages"}


def test_every_estimator_says_of_each_setting_what_it_is_or_why_it_has_no_meaning() -> None:
    assert set(ESTIMATORS) == set(Advantage)
    assert OWN < NULL
    for estimator in ESTIMATORS.values():
        assert estimator.defaults.keys() | estimator.reasons.keys() == OWN
        assert not estimator.defaults.keys() & estimator.reasons.keys()


@pytest.mark.parametrize(
    ("advantage", "filled"),
    [
        ("gae", (KlAs.reward, LossOver.tokens, True, 1.0, 0.95, 0.1, 0.2)),
        ("grpo", (KlAs.loss, LossOver.completions, None, None, None, None, None)),
        ("dr_grpo", (KlAs.loss, LossOver.constant, None, None, None, None, None)),
        ("rloo", (KlAs.reward, LossOver.completions, False, None, None, None, None)),
        ("reinforce", (KlAs.reward, LossOver.tokens, True, 1.0, None, None, None)),
        ("reinforce_baseline", (KlAs.loss, LossOver.tokens, True, None, None, None, None)),
    ],
)
def test_what_is_null_is_filled_in(advantage: str, filled: tuple[object, ...]) -> None:
    ppo = settle(PpoConfig(advantage=Advantage(advantage)))
    found = (ppo.kl_as, ppo.loss_over, ppo.whiten_advantages, ppo.gamma, ppo.lam, ppo.vf_coef, ppo.clip_range_value)
    assert found == filled
    assert settle(ppo) == ppo


def test_what_is_given_stays() -> None:
    ppo = settle(PpoConfig(advantage=Advantage.grpo, kl_as=KlAs.reward, loss_over=LossOver.tokens, max_kl=3.0))
    assert (ppo.kl_as, ppo.loss_over, ppo.max_kl) == (KlAs.reward, LossOver.tokens, 3.0)


def test_the_kl_has_a_limit_where_there_is_a_penalty_at_any_time() -> None:
    penalties = [(0.05, None), (0.05, 0.0), (0.0, 0.1), (0.0, None), (0.0, 0.0)]
    limits = [settle(PpoConfig(kl_coef=start, kl_coef_end=end)).max_kl for start, end in penalties]
    assert limits == [100.0, 100.0, 100.0, None, None]
