"""Which groups have nothing to teach, by value."""

import pytest

from alignkit.ppo.groups import group_metrics, grouped, is_flat


def test_groups_lie_together() -> None:
    assert grouped([1, 2, 3, 4, 5, 6], 3) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("scores", "flat"),
    [
        ([1.0, 1.0, 1.0], True),
        ([1.0, None, 1.0], True),
        ([None, None], True),
        ([None, 3.0], True),
        ([0.73105860, 0.73105854], True),  # rounding of float32
        ([0.0, 0.0], True),
        ([1.0, 1.0, 0.0], False),
        ([1000.0, 1000.01], False),
        ([0.0, 1e-9], False),
    ],
)
def test_a_group_whose_scores_are_alike_is_flat(scores: list[float | None], flat: bool) -> None:
    assert is_flat(scores) is flat


def test_metrics_of_groups() -> None:
    # standard deviations with n − 1: 0, 1, √2 / 2 · 2 = √2
    shaped = [1.0, 1.0, 1.0, 1.0, 2.0, 3.0, None, 4.0, 2.0, None, None, None]
    found = group_metrics(shaped, 3)
    assert found == pytest.approx({"group/flat_fraction": 0.5, "group/std": (0 + 1 + 2**0.5 + 0) / 4})
    assert group_metrics([1.0, 1.0], 1) == {}
