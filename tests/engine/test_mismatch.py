"""How far trainer and engine are apart, and the weights of truncated importance sampling, by value."""

import math

import pytest
import torch

from alignkit.engine.mismatch import mismatch_metrics, truncated_weights

TRAINER = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -1.0, -1.0]])
ENGINE = torch.tensor([[-1.5, -2.0, 0.0], [-3.0, -3.0, -0.5]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_the_mismatch_is_over_the_tokens_that_there_are() -> None:
    measured = mismatch_metrics(TRAINER, ENGINE, MASK)
    assert measured == {"engine/mismatch": pytest.approx(3.0 / 5), "engine/mismatch_max": 2.0}
    assert mismatch_metrics(TRAINER, ENGINE, MASK & False) == {"engine/mismatch": 0.0, "engine/mismatch_max": 0.0}


def test_a_weight_is_the_ratio_cut_at_the_largest_one() -> None:
    weights = truncated_weights(TRAINER, ENGINE, MASK, max_weight=2.0)
    wanted = [[math.exp(0.5), 1.0, 1.0], [1.0, 2.0, math.exp(-0.5)]]
    torch.testing.assert_close(weights, torch.tensor(wanted))
