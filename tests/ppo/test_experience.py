"""Rewards, advantages and returns of a rollout, worked out by hand."""

from typing import Any

import pytest
import torch

from alignkit.choices import Advantage, KlAs
from alignkit.config import PpoConfig
from alignkit.estimators import settle
from alignkit.ppo.experience import RolloutTensors, experience

# Two tokens of a first completion; a second one without a score, whose tensors must not be read.
MASK = torch.tensor([[True, True, False], [False, False, False]])
NOTHING = float("nan")
LOGPROBS = torch.tensor([[-1.0, -2.0, NOTHING], [NOTHING, NOTHING, NOTHING]])
REFERENCE = torch.tensor([[-1.5, -2.0, NOTHING], [NOTHING, NOTHING, NOTHING]])
VALUES = torch.tensor([[0.2, 0.4, NOTHING], [NOTHING, NOTHING, NOTHING]])
ENTROPIES = torch.tensor([[0.3, 0.5, NOTHING], [NOTHING, NOTHING, NOTHING]])


def found(**settings: Any) -> RolloutTensors:
    return experience(
        torch.tensor([1.0, 9.0]),
        MASK,
        trained_BT=MASK,
        logprobs_BT=LOGPROBS,
        ref_logprobs_BT=REFERENCE,
        entropies_BT=ENTROPIES,
        values_BT=VALUES,
        ppo=settle(PpoConfig(gamma=1.0, lam=0.5, **settings)),
        kl_coef=0.5,
    )


def test_the_score_comes_at_the_last_token_and_the_kl_penalty_at_each() -> None:
    # −0.5 · (−1 + 1.5), and 1 − 0.5 · 0
    assert found().rewards_BT.tolist() == [[-0.25, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_advantages_and_returns() -> None:
    tensors = found(whiten_advantages=False)
    # δ_1 = 1 − 0.4 = 0.6 = A_1; δ_0 = −0.25 + 0.4 − 0.2 = −0.05; A_0 = −0.05 + 0.5 · 0.6
    assert tensors.advantages_BT[0].tolist() == pytest.approx([0.25, 0.6, 0.0])
    assert tensors.returns_BT[0].tolist() == pytest.approx([0.45, 1.0, 0.0])  # advantages + values
    assert tensors.advantages_BT[1].tolist() == tensors.returns_BT[1].tolist() == [0.0, 0.0, 0.0]


def test_whitening_leaves_the_returns_as_they_are() -> None:
    tensors = found(whiten_advantages=True)
    # mean 0.425, standard deviation 0.175
    assert tensors.advantages_BT[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)
    assert tensors.returns_BT[0].tolist() == pytest.approx([0.45, 1.0, 0.0])


def test_what_was_computed_before_is_kept() -> None:
    tensors = found()
    assert tensors.mask_BT is MASK
    assert tensors.logprobs_BT is LOGPROBS
    assert tensors.ref_logprobs_BT is REFERENCE
    assert tensors.values_BT is VALUES
    assert tensors.entropies_BT is ENTROPIES


@pytest.mark.parametrize("score", [0.0, 1.0, 3.7, -250.0])
@pytest.mark.parametrize("expected", ["nothing", "all of it"])
def test_constant_rewards_teach_nothing_and_the_smallest_difference_does(score: float, expected: str) -> None:
    """Policy and reference are one model in two passes: their log-probabilities differ by rounding."""
    generator = torch.Generator().manual_seed(0)
    logprobs_BT = -8 * torch.rand(16, 24, generator=generator)
    noise_BT = 2.0**-23 * logprobs_BT * torch.randn(16, 24, generator=generator)
    mask_BT = torch.arange(24) < torch.randint(1, 25, (16, 1), generator=generator)
    values_BT = torch.full((16, 24), score if expected == "all of it" else 0.0)
    ppo = settle(PpoConfig(lam=0.95 if expected == "all of it" else 1.0))

    def advantages(scores_B: torch.Tensor) -> torch.Tensor:
        return experience(
            scores_B,
            mask_BT,
            trained_BT=mask_BT,
            logprobs_BT=logprobs_BT,
            ref_logprobs_BT=logprobs_BT + noise_BT,
            entropies_BT=logprobs_BT,
            values_BT=values_BT + 2.0**-23 * values_BT * torch.randn(16, 24, generator=generator),
            ppo=ppo,
            kl_coef=0.05,
        ).advantages_BT

    assert advantages(torch.full((16,), score)).abs().max() == 0
    better_B = torch.full((16,), score) + torch.arange(16) * max(abs(score), 1.0) * 1e-3
    assert advantages(better_B)[mask_BT].square().mean() == pytest.approx(1, abs=0.01)


def of_groups(scores: list[float], **settings: Any) -> RolloutTensors:
    """Of two groups of two completions, of two tokens and one, the reference e times as unlikely at every token."""
    mask_BT = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    ppo = settle(PpoConfig(num_generations=2, **settings))
    return experience(
        torch.tensor(scores),
        mask_BT,
        trained_BT=mask_BT & torch.tensor([[True], [True], [True], [False]]),
        logprobs_BT=torch.zeros(4, 2),
        ref_logprobs_BT=torch.full((4, 2), -1.0),
        entropies_BT=torch.zeros(4, 2),
        values_BT=None,
        ppo=ppo,
        kl_coef=0.5,
    )


def test_the_advantage_of_a_completion_is_that_of_its_tokens() -> None:
    tensors = of_groups([1.0, 0.0, 5.0, 2.0], advantage=Advantage.dr_grpo)
    assert tensors.rewards_BT.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 5.0], [2.0, 0.0]]  # the KL is in the loss
    # the last completion is left out of the loss, but its score is in the mean of its group
    assert tensors.advantages_BT.tolist() == [[0.5, 0.5], [-0.5, 0.0], [1.5, 1.5], [0.0, 0.0]]
    assert tensors.values_BT is tensors.returns_BT is None


def test_the_kl_penalty_of_a_reward_is_that_of_all_its_tokens() -> None:
    tensors = of_groups([1.0, 0.0, 5.0, 2.0], advantage=Advantage.rloo)
    # R = 1 − 0.5 · 2, 0 − 0.5, 5 − 1, 2 − 0.5; each less the other of its group
    assert tensors.advantages_BT.tolist() == [[0.5, 0.5], [-0.5, 0.0], [2.5, 2.5], [0.0, 0.0]]
    in_loss = of_groups([1.0, 0.0, 5.0, 2.0], advantage=Advantage.rloo, kl_as=KlAs.loss)
    assert in_loss.advantages_BT.tolist() == [[1.0, 1.0], [-1.0, 0.0], [3.0, 3.0], [0.0, 0.0]]


def test_reinforce_is_whitened_over_the_tokens_that_are_learned_from() -> None:
    tensors = of_groups([1.0, 0.0, 5.0, 2.0], advantage=Advantage.reinforce, kl_as=KlAs.loss)
    # returns to go 1, 1, 0, 5, 5: mean 2.4, variance 4.64
    expected = [(value - 2.4) / 4.64**0.5 for value in (1.0, 1.0, 0.0, 5.0, 5.0)]
    assert tensors.advantages_BT[tensors.trained_BT].tolist() == pytest.approx(expected, abs=1e-6)
    assert tensors.advantages_BT[3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("advantage", [name for name in Advantage if name is not Advantage.gae])
def test_rewards_that_are_alike_teach_exactly_nothing(advantage: Advantage) -> None:
    score = 0.1 if advantage is Advantage.reinforce else 7.3
    tensors = of_groups([0.1, 0.1, score, score], advantage=advantage, kl_as=KlAs.loss)
    assert tensors.advantages_BT.eq(0).all()
