from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignkit.choices import LossOver, RatioOver
from alignkit.ppo.loss import entropy_bonus, kl_loss, loss_divisors, policy_loss, token_entropies, value_loss

NAN = math.nan
number = st.floats(-3, 3, width=32)
Rows = tuple[list[list[float]], list[list[float]], list[list[float]], list[list[bool]]]


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    width, num_rows = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    grid = [[[draw(number) for _ in range(width)] for _ in range(num_rows)] for _ in range(3)]
    mask = [[draw(st.booleans()) for _ in range(width)] for _ in range(num_rows)]
    return grid[0], grid[1], grid[2], mask


def test_policy_loss_by_value() -> None:
    # ρ = 1.5, 0.5, 1.1, 1.5, 0.5 and one masked; ε = 0.2
    ratio = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 9.0]])
    advantages = torch.tensor([[1.0, 1.0, 2.0], [-1.0, -1.0, NAN]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    result = policy_loss(ratio.log(), torch.zeros(2, 3), advantages, mask, clip_range=0.2, num_tokens=5)
    # min(ρA, clip A): 1.2 (cut), 0.5, 2.2, −1.5, −0.8 (cut)
    assert result.loss.item() == pytest.approx(-(1.2 + 0.5 + 2.2 - 1.5 - 0.8) / 5, rel=1e-6)
    assert result.clip_fraction.item() == pytest.approx(2 / 5)
    k3 = [r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 1.5, 0.5)]
    assert result.approx_kl.item() == pytest.approx(sum(k3) / 5, rel=1e-5)
    assert result.ratio_max.item() == pytest.approx(1.5)


def test_at_the_first_minibatch_the_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -4.0]], requires_grad=True)
    advantages = torch.tensor([[3.0, -1.0], [2.0, 5.0]])
    mask = torch.tensor([[True, True], [True, False]])
    result = policy_loss(logprobs, logprobs.detach(), advantages, mask, clip_range=0.2, num_tokens=3)
    assert (result.ratio_max.item(), result.approx_kl.item(), result.clip_fraction.item()) == (1, 0, 0)
    result.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [pytest.approx([-1, 1 / 3]), pytest.approx([-2 / 3, 0])]


def test_clipped_tokens_have_no_gradient() -> None:
    logprobs = torch.tensor([[0.5, -0.5, 0.5, -0.5]], requires_grad=True)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    result = policy_loss(
        logprobs, torch.zeros(1, 4), advantages, torch.ones(1, 4, dtype=torch.bool), clip_range=0.2, num_tokens=1
    )
    result.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [pytest.approx([0, -math.exp(-0.5), math.exp(0.5), 0])]


@given(rows(), st.floats(0.05, 0.9))
def test_policy_loss_against_a_slow_loop(rows: Rows, clip_range: float) -> None:
    new, old, advantages, mask = rows
    result = policy_loss(*(torch.tensor(grid) for grid in rows), clip_range=clip_range, num_tokens=7)
    total, kl, largest = 0.0, 0.0, 0.0
    for b, row in enumerate(new):
        for t in range(len(row)):
            if not mask[b][t]:
                continue
            ratio = math.exp(new[b][t] - old[b][t])
            clipped = max(1 - clip_range, min(1 + clip_range, ratio))
            total -= min(ratio * advantages[b][t], clipped * advantages[b][t])
            kl += ratio - 1 - math.log(ratio)
            largest = max(largest, ratio)
    assert result.loss.item() == pytest.approx(total / 7, rel=1e-4, abs=1e-4)
    assert result.approx_kl.item() == pytest.approx(kl / 7, rel=1e-4, abs=1e-4)
    assert result.ratio_max.item() == pytest.approx(largest, rel=1e-4)


def test_the_loss_is_averaged_over_tokens_completions_or_by_a_constant() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    found = {over: loss_divisors(mask, over, max_new_tokens=8).tolist() for over in LossOver}
    assert found == {
        LossOver.tokens: [4, 4, 4],
        LossOver.completions: [3 * 2, 1 * 2, 1 * 2],  # two have something to learn from
        LossOver.constant: [3 * 8] * 3,
    }
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert [int(loss_divisors(nothing, over, max_new_tokens=8).min()) for over in LossOver] == [1, 1, 16]


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective"),
    [
        (1.5, 1.0, 1.4),  # cut at 1 + ε_high
        (1.3, 1.0, 1.3),
        (0.5, 1.0, 0.5),
        (0.5, -1.0, -0.8),  # cut at 1 − ε
        (1.5, -1.0, -1.5),
        (9.0, -1.0, -3.0),  # the dual clip: c A, whatever the ratio
        (9.0, 1.0, 1.4),
    ],
)
def test_a_higher_range_and_a_dual_clip_by_value(ratio: float, advantage: float, objective: float) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    given = (logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1, dtype=torch.bool))
    result = policy_loss(*given, clip_range=0.2, clip_range_high=0.4, dual_clip=3.0, num_tokens=1)
    assert result.loss.item() == pytest.approx(-objective, rel=1e-6)
    result.loss.backward()
    is_cut = objective != ratio * advantage
    assert logprobs.grad is not None
    assert (logprobs.grad.item() == 0) is is_cut
    assert result.clip_fraction.item() == float(is_cut)


def test_the_ratio_of_a_completion_is_the_geometric_mean_of_its_tokens() -> None:
    # ln ρ = 0.3, −0.1, 0.1 → (0.3 − 0.1 + 0.1) / 3 = 0.1; the second completion is one token
    logprobs = torch.tensor([[0.3, -0.1, 0.1], [-0.05, NAN, NAN]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[2.0, 2.0, 2.0], [-1.0, NAN, NAN]])
    divisors = loss_divisors(mask, LossOver.completions, max_new_tokens=3)
    result = policy_loss(
        logprobs,
        torch.zeros(2, 3),
        advantages,
        mask,
        clip_range=0.2,
        num_tokens=4,
        divisors_B=divisors,
        ratio_over=RatioOver.completion,
    )
    assert result.loss.item() == pytest.approx(-(2 * math.exp(0.1) - math.exp(-0.05)) / 2, rel=1e-6)
    result.loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([-math.exp(0.1) / 3] * 3, rel=1e-5)
    assert logprobs.grad[1].tolist() == pytest.approx([math.exp(-0.05) / 2, 0, 0], rel=1e-5)
    assert result.ratio_max.item() == pytest.approx(math.exp(0.1), rel=1e-6)


def test_the_kl_in_the_loss_by_value_and_its_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, NAN]], requires_grad=True)
    ref = torch.tensor([[-1.5, -2.0], [-0.2, NAN]])
    mask = torch.tensor([[True, True], [True, False]])
    divisors = loss_divisors(mask, LossOver.completions, max_new_tokens=2)
    loss = kl_loss(logprobs, ref, mask, divisors_B=divisors)
    k3 = [math.exp(-0.5) + 0.5 - 1, 0.0, math.exp(0.3) - 0.3 - 1]
    assert loss.item() == pytest.approx((k3[0] + k3[1]) / 4 + k3[2] / 2, rel=1e-5)
    loss.backward()
    # d k3 / d ln π = 1 − π_ref / π
    assert logprobs.grad is not None
    assert logprobs.grad[0].tolist() == pytest.approx([(1 - math.exp(-0.5)) / 4, 0], rel=1e-5)
    assert logprobs.grad[1].tolist() == pytest.approx([(1 - math.exp(0.3)) / 2, 0], rel=1e-5)


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_gradient_of_k3_is_that_of_the_forward_kl_and_times_the_ratio_that_of_the_reverse(unbiased: bool) -> None:
    """In the mean over what the policy draws: here all tokens there are, each as often as it is likely."""
    logits = torch.tensor([0.3, -1.2, 0.7, 2.0], dtype=torch.float64, requires_grad=True)
    log_ref = torch.tensor([-0.5, 0.4, 1.1, 0.2], dtype=torch.float64).log_softmax(-1)
    log_policy = logits.log_softmax(-1)
    forward = (log_ref.exp() * (log_ref - log_policy)).sum()
    reverse = (log_policy.exp() * (log_policy - log_ref)).sum()
    kl = torch.stack(
        [
            kl_loss(
                log_policy[token, None, None],
                log_ref[token, None, None],
                torch.ones(1, 1, dtype=torch.bool),
                divisors_B=torch.ones(1, dtype=torch.long),
                old_logprobs_BT=log_policy[token, None, None].detach() if unbiased else None,
            )
            for token in range(4)
        ]
    )
    loss = (log_policy.detach().exp() * kl).sum()
    assert loss.item() == pytest.approx(reverse.item(), rel=1e-9)  # as a value, k3 has no bias in either way
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (right,) = torch.autograd.grad(reverse if unbiased else forward, logits)
    assert found.tolist() == pytest.approx(right.tolist(), rel=1e-9)


def test_value_loss_by_value() -> None:
    values = torch.tensor([[1.0, 3.0, 0.0, NAN]])
    old = torch.tensor([[1.1, 1.0, 1.0, NAN]])
    returns = torch.tensor([[2.0, 4.0, 0.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    # V near its old one: (1 − 2)²; V clipped to 1.5 is worse: (1.5 − 4)² > 1; V clipped to 0.5 is worse: 0.25 > 0
    result = value_loss(values, old, returns, mask, clip_range=0.5, num_tokens=3)
    assert result.loss.item() == pytest.approx((1 + 6.25 + 0.25) / 2 / 3)
    assert result.clip_fraction.item() == pytest.approx(2 / 3)
    free = value_loss(values, old, returns, mask, clip_range=math.inf, num_tokens=3)
    assert free.loss.item() == pytest.approx((1 + 1 + 0) / 2 / 3)
    assert free.clip_fraction.item() == 0


@given(rows(), st.floats(0.05, 3))
def test_value_loss_against_a_slow_loop(rows: Rows, clip_range: float) -> None:
    values, old, returns, mask = rows
    result = value_loss(*(torch.tensor(grid) for grid in rows), clip_range=clip_range, num_tokens=4)
    total = 0.0
    for b, row in enumerate(values):
        for t in range(len(row)):
            if mask[b][t]:
                clipped = max(old[b][t] - clip_range, min(old[b][t] + clip_range, values[b][t]))
                total += max((values[b][t] - returns[b][t]) ** 2, (clipped - returns[b][t]) ** 2)
    assert result.loss.item() == pytest.approx(total / 2 / 4, rel=1e-4, abs=1e-4)


def test_entropies_by_value_and_with_gradient() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0], [1.0, 1.0, -50.0, -50.0]])
    assert token_entropies(logits).tolist() == pytest.approx([math.log(4), 0, math.log(2)], abs=1e-6)
    assert torch.autograd.gradcheck(token_entropies, torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True))


def test_entropy_bonus_by_value() -> None:
    entropies, mask = torch.tensor([[1.0, 2.0, NAN]]), torch.tensor([[True, True, False]])
    assert entropy_bonus(entropies, mask, num_tokens=4).item() == 0.75


def losses(parts: slice, leaf: Tensor, num_tokens: int) -> Tensor:
    """All three losses of some rows of one fixed batch whose lengths differ."""
    source = torch.Generator().manual_seed(0)
    old, target = torch.randn(2, 8, 5, generator=source)
    mask = torch.arange(5) < torch.tensor([5, 1, 2, 5, 3, 4, 1, 1])[:, None]
    part = (leaf[parts], old[parts], target[parts], mask[parts])
    policy = policy_loss(*part, clip_range=0.2, num_tokens=num_tokens).loss
    for over in LossOver:
        divisors = loss_divisors(mask, over, max_new_tokens=5)[parts]
        policy = policy + policy_loss(*part, clip_range=0.2, num_tokens=num_tokens, divisors_B=divisors).loss
        policy = policy + kl_loss(leaf[parts], target[parts], mask[parts], divisors_B=divisors)
        kl = kl_loss(leaf[parts], target[parts], mask[parts], divisors_B=divisors, old_logprobs_BT=old[parts])
        policy = policy + kl
    value = value_loss(*part, clip_range=0.2, num_tokens=num_tokens).loss
    return policy + 0.1 * value - 0.01 * entropy_bonus(leaf[parts].square(), mask[parts], num_tokens=num_tokens)


def test_pieces_of_a_minibatch_add_up_in_loss_and_gradient() -> None:
    start = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for cuts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)], [slice(0, 1), slice(1, 6), slice(6, 8)]):
        leaf = start.clone().requires_grad_()
        total = sum((losses(cut, leaf, 22) for cut in cuts), torch.zeros(()))
        total.backward()
        results.append((total.detach(), leaf.grad))
    for total, gradient in results[1:]:
        assert torch.allclose(total, results[0][0], rtol=1e-6)
        assert torch.allclose(gradient, results[0][1], rtol=1e-6)


@pytest.mark.parametrize("loss", [policy_loss, value_loss])
def test_what_lies_outside_the_mask_has_no_part_in_loss_or_gradient(loss: Callable[..., object]) -> None:
    mask = torch.tensor([[True, False, False]])
    leaf = torch.tensor([[0.3, 500.0, NAN]], requires_grad=True)
    others = torch.tensor([[0.1, -500.0, NAN]]), torch.tensor([[1.0, math.inf, NAN]])
    result = loss(leaf, *others, mask, clip_range=0.5, num_tokens=1)
    result.loss.backward()
    alone = loss(leaf[:, :1], *(x[:, :1] for x in others), mask[:, :1], clip_range=0.5, num_tokens=1)
    assert result.loss.item() == alone.loss.item()
    assert leaf.grad[0, 0] != 0
    assert leaf.grad[0, 1:].tolist() == [0, 0]
