"""The report card's figures by value."""

import json
from pathlib import Path

import pytest

from alignkit.evaluate.card import interval, report_card, write_card


def test_figures_of_four_pairs() -> None:
    card = report_card([2.0, 1.0, 0.5, 0.0], [0.0, 3.0, 0.5, -1.0], [4, 2, 3, 9], [2, 4, 3, 1])
    assert card["pairs"] == 4
    assert card["accuracy"]["value"] == (1 + 0 + 0.5 + 1) / 4
    assert card["longer_wins"]["value"] == (1 + 0 + 0.5 + 1) / 4
    assert card["margin"]["mean"] == (2 - 2 + 0 + 1) / 4
    assert sum(card["margin"]["histogram"]["counts"]) == 4
    assert [bucket["tokens"] for bucket in card["by_length"]] == [[6, 6], [10, 10]]
    assert card["score_mean"] == pytest.approx(0.75)
    assert sum(bin_["pairs"] for bin_ in card["calibration"]) == 4
    assert -1 <= card["score_length_correlation"] <= 1


def test_pairs_of_one_length_are_in_one_part() -> None:
    lengths = [5] * 7 + [6] * 2 + [7, 8, 9] + [10] * 8
    card = report_card([1.0] * 20, [0.0] * 20, lengths, [0] * 20)
    assert [(bucket["tokens"], bucket["pairs"]) for bucket in card["by_length"]] == [
        ([5, 5], 7),
        ([6, 7], 3),
        ([8, 9], 2),
        ([10, 10], 8),
    ]


def test_wilson_s_interval_of_eight_in_ten() -> None:
    found = interval(8, 10)
    assert (found["value"], round(found["low"], 4), round(found["high"], 4)) == (0.8, 0.4902, 0.9433)
    assert interval(10, 10)["high"] == pytest.approx(1)
    assert all(interval(n, n)["high"] >= 1 and interval(0, n)["low"] <= 0 for n in range(1, 300))
    assert interval(10, 10)["low"] == pytest.approx(0.7225, abs=1e-4)


def test_scores_that_do_not_vary_have_no_correlation() -> None:
    assert report_card([1.0, 1.0], [1.0, 1.0], [1, 2], [3, 4])["score_length_correlation"] is None


def test_a_card_is_written_with_its_picture(tmp_path: Path) -> None:
    card = report_card([2.0, 1.0, 0.5, 0.0] * 5, [0.0, 3.0, 0.5, -1.0] * 5, [4, 2, 3, 9] * 5, [2, 4, 3, 1] * 5)
    write_card({"eval": card}, tmp_path)
    assert json.loads((tmp_path / "report_card.json").read_text()) == {"eval": card}
    assert (tmp_path / "report_card.png").read_bytes().startswith(b"\x89PNG")
