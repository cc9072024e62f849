"""Figures of responses, counted by hand."""

import math

from alignkit.evaluate.figures import Figures, difference_lines, distinct, equal_lines, figures_table, precision_lines
from alignkit.evaluate.statistics import expectation, mean_interval


def test_distinct_by_value() -> None:
    assert distinct(["a b a", "b"], 1) == 2 / 4
    assert distinct(["a b a", "b"], 2) == 1.0
    assert distinct(["a b a b", "a b"], 2) == 2 / 4
    assert math.isnan(distinct(["a"], 2))


def test_equal_values_have_no_interval_and_say_so() -> None:
    alike = Figures("alike", loss=mean_interval([0.5, 0.5]), scores=[[1.0]] * 32, reward=expectation([[1.0]] * 32))
    assert figures_table([alike]).split("\n")[1].split() == ["alike", "0.5000", "[–]", "1.649", "1.0000", "[–]"]
    assert equal_lines([alike]) == [
        "[–] one value, or all of them equal: nothing tells how far others are from it",
        "32 prompts with equal rewards: at most 9% of all others differ",
    ]
    assert "+0.0000 [–]" in difference_lines([alike, alike])[-1]
    assert precision_lines([alike], 0.1) == [
        "",
        "alike: its rewards do not tell their spread, so neither how many of them ± 0.1 takes",
    ]


def test_figures_with_their_intervals_need_no_word() -> None:
    assert equal_lines([Figures("one", loss=mean_interval([1.0, 2.0]), reward=expectation([[1.0], [0.0]]))]) == []
