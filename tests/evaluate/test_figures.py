"""Figures of responses, counted by hand."""

import math

from alignkit.evaluate.figures import distinct


def test_distinct_by_value() -> None:
    assert distinct(["a b a", "b"], 1) == 2 / 4
    assert distinct(["a b a", "b"], 2) == 1.0
    assert distinct(["a b a b", "a b"], 2) == 2 / 4
    assert math.isnan(distinct(["a"], 2))
