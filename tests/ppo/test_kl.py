from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.ppo.kl import KLController, sequence_sums, token_kl, token_sum

NAN = math.nan
logprob = st.floats(-20, 0, width=32)


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]], list[list[bool]]]:
    num_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))

    def grid(cell: st.SearchStrategy[Any]) -> st.SearchStrategy[list[list[Any]]]:
        row = st.lists(cell, min_size=width, max_size=width)
        return st.lists(row, min_size=num_rows, max_size=num_rows)

    return draw(grid(logprob)), draw(grid(logprob)), draw(grid(st.booleans()))


def test_estimators_by_value() -> None:
    # r = π_ref / π is 2, 1/2 and 1
    logprobs = torch.tensor([[-2.0, -1.0, -3.0]])
    ref = logprobs + torch.tensor([[2.0, 0.5, 1.0]]).log()
    mask = torch.ones(1, 3, dtype=torch.bool)
    ln2 = math.log(2)
    expected = {"k1": [-ln2, ln2, 0], "k2": [ln2**2 / 2, ln2**2 / 2, 0], "k3": [1 - ln2, ln2 - 0.5, 0]}
    for estimator, values in expected.items():
        assert token_kl(logprobs, ref, mask, estimator=estimator)[0].tolist() == pytest.approx(values, abs=1e-6)


@given(rollouts(), st.sampled_from(["k1", "k2", "k3"]))
def test_estimators_against_a_slow_loop(
    rows: tuple[list[list[float]], list[list[float]], list[list[bool]]], estimator: str
) -> None:
    logprobs, ref, mask = rows
    estimates = token_kl(torch.tensor(logprobs), torch.tensor(ref), torch.tensor(mask), estimator=estimator)
    num_tokens, total = 0, 0.0
    for b, row in enumerate(logprobs):
        sequence = 0.0
        for t in range(len(row)):
            if not mask[b][t]:
                assert estimates[b, t] == 0
                continue
            ratio = math.exp(ref[b][t]) / math.exp(logprobs[b][t])
            slow = {
                "k1": -math.log(ratio),
                "k2": math.log(ratio) ** 2 / 2,
                "k3": ratio - 1 - math.log(ratio),
            }[estimator]
            assert estimates[b, t].item() == pytest.approx(slow, rel=1e-4, abs=1e-5)
            sequence += estimates[b, t].item()
            num_tokens += 1
        assert sequence_sums(estimates, torch.tensor(mask))[b].item() == pytest.approx(sequence, rel=1e-5, abs=1e-5)
        total += sequence
    summed, counted = token_sum(estimates, torch.tensor(mask))
    assert (summed.item(), counted.item()) == (pytest.approx(total, rel=1e-5, abs=1e-5), num_tokens)


def test_estimators_meet_the_exact_divergence_on_average() -> None:
    torch.manual_seed(0)
    policy, ref = (torch.randn(8).mul(0.5).log_softmax(-1) for _ in range(2))
    exact = (policy.exp() * (policy - ref)).sum().item()
    ids = torch.multinomial(policy.exp(), 200_000, replacement=True)[None]
    mask = torch.ones_like(ids, dtype=torch.bool)
    k1, k3 = (token_kl(policy[ids], ref[ids], mask, estimator=name) for name in ("k1", "k3"))
    assert k1.mean().item() == pytest.approx(exact, abs=6 * k1.std().item() / math.sqrt(200_000))
    assert k3.mean().item() == pytest.approx(exact, abs=6 * k3.std().item() / math.sqrt(200_000))
    assert k3.min() >= 0
    assert k3.var() < k1.var() / 2


def test_k3_does_not_drown_in_rounding_near_one() -> None:
    logprobs, ref = torch.tensor([[0.0]]), torch.tensor([[1e-3]])
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert token_kl(logprobs, ref, mask, estimator="k3").item() == pytest.approx(5.0016671e-7, rel=1e-3)


def test_what_lies_outside_the_mask_is_never_read() -> None:
    mask = torch.tensor([[True, False]])
    kl = token_kl(torch.tensor([[-1.0, NAN]]), torch.tensor([[-2.0, -math.inf]]), mask, estimator="k3")
    assert kl.tolist() == [[pytest.approx(math.exp(-1)), 0]]
    rows = torch.tensor([[3.0, NAN]])
    assert sequence_sums(rows, mask).tolist() == [3]
    assert [x.item() for x in token_sum(rows, mask)] == [3, 1]


def test_a_fixed_coefficient_stays() -> None:
    controller = KLController(0.2)
    controller.update(100.0, num_rollouts=512)
    assert controller.coef == 0.2


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.1 * (1 + 0.1 * 0.05)),  # a tenth above
        (5.4, 0.1 * (1 - 0.1 * 0.05)),
        (60.0, 0.1 * (1 + 0.2 * 0.05)),  # clipped
        (0.0, 0.1 * (1 - 0.2 * 0.05)),
    ],
)
def test_the_controller_by_value(kl: float, expected: float) -> None:
    controller = KLController(0.1, target=6.0, horizon=10_000)
    controller.update(kl, num_rollouts=500)
    assert controller.coef == pytest.approx(expected, rel=1e-12)


def test_the_controller_settles_at_its_target() -> None:
    controller = KLController(5.0, target=2.0, horizon=1000)
    for _ in range(2000):
        controller.update(1 / controller.coef, num_rollouts=100)  # the larger β, the smaller the KL
    assert controller.coef == pytest.approx(0.5, rel=1e-3)


def test_the_controller_goes_on_where_it_was() -> None:
    first = KLController(0.1, target=6.0)
    first.update(9.0, num_rollouts=64)
    second = KLController(0.1, target=6.0)
    second.load_state_dict(first.state_dict())
    first.update(7.0, num_rollouts=64)
    second.update(7.0, num_rollouts=64)
    assert first == second
