"""The advantage estimators of PPO: what each one computes, what it needs, and which settings have a meaning beside it.

The arithmetic is in `ppo/advantage.py` and `ppo/group_advantage.py`. The checks of a job, its defaults, its first
screen and the tables of `docs/ppo.md` are made from the values here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alignkit.choices import Advantage, KlAs, LossOver
from alignkit.config import PpoConfig

MAX_KL = 100.0  # nats per completion, where there is a reference to measure from
_CRITIC = {"vf_coef": 0.1, "clip_range_value": 0.2, "lam": 0.95}
_NO_CRITIC = dict.fromkeys(_CRITIC, "it has no value function")
_NO_DISCOUNT = {"gamma": "every token of a completion has the same advantage"}


@dataclass(frozen=True)
class Estimator:
    """What an estimator of advantages computes and needs.

    Attributes:
        formula: the advantage A of each token of completion i in its group, the K completions of a prompt.
        source: of the formula.
        defaults: of the settings of `PpoConfig` that are null there and have a meaning here.
        reasons: why the others have none.
        compares_group: a completion is compared with the others of its prompt, of which there must be some.
        whitens_always: its advantages have no other scale.
        divides_by_spread: of the rewards of a group, so that another scale of the scores changes nothing.
    """

    formula: str
    source: str
    defaults: Mapping[str, Any]
    reasons: Mapping[str, str]
    compares_group: bool = True
    whitens_always: bool = False
    divides_by_spread: bool = False

    @property
    def has_critic(self) -> bool:
        """Whether it needs a value function."""
        return "vf_coef" in self.defaults


ESTIMATORS = {
    Advantage.gae: Estimator(
        "generalized advantage estimation on the rewards of the tokens",
        "Schulman et al. 2016, eq. 16",
        {"kl_as": KlAs.reward, "loss_over": LossOver.tokens, "whiten_advantages": True, "gamma": 1.0, **_CRITIC},
        {},
        compares_group=False,
    ),
    Advantage.grpo: Estimator(
        "(R_i − mean R) / (std R + 1e-4) over the group",
        "Shao et al. 2024, §4.1.2",
        {"kl_as": KlAs.loss, "loss_over": LossOver.completions},
        {
            **_NO_CRITIC,
            **_NO_DISCOUNT,
            "whiten_advantages": "the advantages of each group have mean 0 and variance 1 already",
        },
        divides_by_spread=True,
    ),
    Advantage.dr_grpo: Estimator(
        "R_i − mean R over the group",
        "Liu et al. 2025, §3.2",
        {"kl_as": KlAs.loss, "loss_over": LossOver.constant},
        {**_NO_CRITIC, **_NO_DISCOUNT, "whiten_advantages": "it is GRPO without the division by a spread"},
    ),
    Advantage.rloo: Estimator(
        "R_i − the mean R of the other K − 1 of the group",
        "Ahmadian et al. 2024, §2.3",
        {"kl_as": KlAs.reward, "loss_over": LossOver.completions, "whiten_advantages": False},
        {**_NO_CRITIC, **_NO_DISCOUNT},
    ),
    Advantage.reinforce: Estimator(
        "the sum of the rewards from this token on, discounted by γ, then whitened over the tokens of the rollout",
        "REINFORCE++, Hu 2025",
        {"kl_as": KlAs.reward, "loss_over": LossOver.tokens, "whiten_advantages": True, "gamma": 1.0},
        _NO_CRITIC,
        compares_group=False,
        whitens_always=True,
    ),
    Advantage.reinforce_baseline: Estimator(
        "R_i − mean R over the group, then whitened over the tokens of the rollout",
        "REINFORCE++-baseline, Hu 2025",
        {"kl_as": KlAs.loss, "loss_over": LossOver.tokens, "whiten_advantages": True},
        {**_NO_CRITIC, **_NO_DISCOUNT},
        whitens_always=True,
    ),
}


def estimator_of(ppo: PpoConfig) -> Estimator:
    """Return the estimator that the section names."""
    return ESTIMATORS[ppo.advantage]


def needs_reference(ppo: PpoConfig) -> bool:
    """Tell whether there is a KL penalty at any time: without one no reference is held."""
    return ppo.kl_coef > 0 or (ppo.kl_coef_end or 0) > 0


def settle(ppo: PpoConfig) -> PpoConfig:
    """Fill in what is null and has a meaning beside the estimator; what has none stays null."""
    defaults = {**estimator_of(ppo).defaults, **({"max_kl": MAX_KL} if needs_reference(ppo) else {})}
    return replace(ppo, **{name: value for name, value in defaults.items() if getattr(ppo, name) is None})
