from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from alignkit.config import SamplingConfig
from alignkit.sampling.distribution import (
    apply_repetition_penalty,
    apply_temperature,
    distribution,
    entropy,
    keep_min_p,
    keep_top_k,
    keep_top_p,
)

NO_IDS = torch.zeros(64, 1, dtype=torch.long)  # transformers' warpers ask for the tokens before and ignore them

logits_rows = arrays("float32", (3, 11), elements=st.floats(-30, 30, width=32)).map(torch.from_numpy)
samplings = st.builds(
    SamplingConfig,
    do_sample=st.sampled_from([None, True]),
    temperature=st.none() | st.floats(0.05, 20),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
    repetition_penalty=st.none() | st.floats(0.5, 3),
)


def random_logits(seed: int, num_tokens: int = 300) -> Tensor:
    return torch.randn(64, num_tokens, generator=torch.Generator().manual_seed(seed)) * 4


def kept(logits: Tensor) -> list[int]:
    return logits.isfinite().nonzero().flatten().tolist()


@given(logits=logits_rows, sampling=samplings)
def test_probabilities_sum_to_one(logits: Tensor, sampling: SamplingConfig) -> None:
    probabilities = distribution(logits, sampling, torch.tensor([[0, 1], [2, -1], [-1, -1]]))
    assert probabilities.sum(-1).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert (probabilities >= 0).all()


@given(logits=logits_rows, temperature=st.floats(0, 100))
def test_temperature_keeps_the_order(logits: Tensor, temperature: float) -> None:
    probabilities = apply_temperature(logits, temperature).softmax(-1)
    assert (probabilities.gather(-1, logits.argsort(-1)).diff() >= 0).all()


def test_temperature_by_value() -> None:
    logits = torch.tensor([0.0, math.log(3)])
    assert apply_temperature(logits, 1.0).softmax(-1).tolist() == pytest.approx([1 / 4, 3 / 4])
    assert apply_temperature(logits, 0.5).softmax(-1).tolist() == pytest.approx([1 / 10, 9 / 10])  # squares: 1 : 9
    assert apply_temperature(logits, 2.0).softmax(-1).tolist() == pytest.approx([0.3660254, 0.6339746])  # roots: 1 : √3


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-30])
def test_temperature_towards_zero_is_greedy_and_shares_between_ties(temperature: float) -> None:
    logits = torch.tensor([[90.0, -90.0, 89.999], [5.0, 5.0, -torch.inf]])
    assert apply_temperature(logits, temperature).softmax(-1).tolist() == [[1, 0, 0], [0.5, 0.5, 0]]


def test_temperature_towards_infinity_is_uniform() -> None:
    assert apply_temperature(torch.tensor([3.0, -4.0]), 1e9).softmax(-1).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("k", [1, 2, 50, 299, 300, 1000])
def test_top_k_keeps_exactly_k(k: int) -> None:
    logits = random_logits(0)
    assert (logits.sort().values.diff() != 0).all(), "no ties here"
    assert keep_top_k(logits, k).isfinite().sum(-1).tolist() == [min(k, 300)] * 64


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    assert kept(keep_top_k(torch.tensor([1.0, 3.0, 2.0, 2.0, 0.0]), 2)) == [1, 2, 3]


def test_top_p_keeps_the_fewest_that_reach_p() -> None:
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    assert kept(keep_top_p(logits, 0.49)) == [1]
    assert kept(keep_top_p(logits, 0.51)) == [1, 3]
    assert kept(keep_top_p(logits, 0.79)) == [1, 3]
    assert kept(keep_top_p(logits, 0.81)) == [0, 1, 3]
    assert kept(keep_top_p(logits, 1.0)) == [0, 1, 2, 3]
    assert kept(keep_top_p(logits, 1e-9)) == [1]
    # two of four equal tokens reach a half exactly: no third is needed
    assert keep_top_p(torch.zeros(4), 0.5).isfinite().sum() == 2


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    assert kept(keep_min_p(logits, 0.0)) == [0, 1, 2, 3]
    assert kept(keep_min_p(logits, 0.29)) == [0, 1, 3]
    assert kept(keep_min_p(logits, 0.31)) == [1, 3]
    assert kept(keep_min_p(logits, 1.0)) == [1]


def test_repetition_penalty_by_value() -> None:
    logits = torch.tensor([[3.0, -3.0, 1.0, 0.0], [3.0, -3.0, 1.0, 0.0]])
    previous = torch.tensor([[0, 1, 0], [-1, -1, 3]])
    assert apply_repetition_penalty(logits, previous, 2.0).tolist() == [[1.5, -6, 1, 0], [3, -3, 1, 0]]


def test_each_filter_equals_that_of_transformers() -> None:
    for seed in range(20):
        logits = random_logits(seed)
        previous = torch.randint(300, (64, 40), generator=torch.Generator().manual_seed(seed))
        temperature, k, p, min_p, penalty = 0.1 + seed / 7, 1 + 15 * seed, (seed + 1) / 21, seed / 20, 0.6 + seed / 9
        softened = apply_temperature(logits, temperature).softmax(-1)
        assert torch.allclose(softened, TemperatureLogitsWarper(temperature)(NO_IDS, logits).softmax(-1), rtol=1e-4)
        assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(NO_IDS, logits))
        assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(NO_IDS, logits))
        assert torch.equal(keep_min_p(logits, min_p), MinPLogitsWarper(min_p)(NO_IDS, logits))
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(previous, logits)
        assert torch.equal(apply_repetition_penalty(logits, previous, penalty), theirs)


def test_all_together_equal_transformers_in_its_order() -> None:
    sampling = SamplingConfig(temperature=1.7, top_k=40, top_p=0.8, min_p=0.05, repetition_penalty=1.3)
    theirs = [
        RepetitionPenaltyLogitsProcessor(1.3),
        TemperatureLogitsWarper(1.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.8),
        MinPLogitsWarper(0.05),
    ]
    for seed in range(20):
        logits = random_logits(seed)
        previous = torch.randint(300, (64, 40), generator=torch.Generator().manual_seed(seed))
        scores = logits
        for processor in theirs:
            scores = processor(previous, scores)
        assert torch.allclose(distribution(logits, sampling, previous), scores.softmax(-1), atol=1e-6)


def test_without_a_draw_the_first_of_the_likeliest_has_it_all() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0], [9.0, -1.0, 0.0]])
    assert distribution(logits, SamplingConfig()).tolist() == [[0, 1, 0], [1, 0, 0]]
    penalised = distribution(logits, SamplingConfig(repetition_penalty=2.0), torch.tensor([[1], [-1]]))
    assert penalised.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_any_leading_shape_and_low_precision() -> None:
    logits = random_logits(3).view(4, 16, 300)
    sampling = SamplingConfig(top_k=7, top_p=0.9, repetition_penalty=1.2)
    previous = torch.arange(64 * 5).view(4, 16, 5) % 300
    whole = distribution(logits, sampling, previous)
    assert torch.equal(whole.view(64, 300), distribution(logits.view(64, 300), sampling, previous.view(64, 5)))
    assert distribution(logits.bfloat16(), sampling, previous).dtype == torch.float32


def test_entropy_in_nats() -> None:
    probabilities = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert entropy(probabilities).tolist() == pytest.approx([math.log(4), 0, math.log(2)])


@settings(max_examples=50)
@given(logits=logits_rows, low=st.floats(0.1, 10), high=st.floats(0.1, 10))
def test_entropy_grows_with_temperature(logits: Tensor, low: float, high: float) -> None:
    low, high = sorted([low, high])
    cool, warm = (entropy(apply_temperature(logits, t).softmax(-1)) for t in (low, high))
    assert (cool <= warm + 1e-4).all()
