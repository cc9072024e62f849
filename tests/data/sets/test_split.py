from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.sets.split import split_by_prompt
from alignkit.errors import DataError

KEYS = st.lists(st.text(max_size=3), min_size=2, max_size=60).filter(lambda keys: len(set(keys)) > 1)
FRACTIONS = st.floats(0.001, 0.999)


@given(KEYS, FRACTIONS, st.integers(0, 1000))
def test_every_row_is_on_one_side_and_every_prompt_too(keys: list[str], fraction: float, seed: int) -> None:
    stay, held = split_by_prompt(keys, fraction=fraction, seed=seed)
    assert sorted(stay + held) == list(range(len(keys)))
    assert stay == sorted(stay)
    assert held == sorted(held)
    assert stay
    assert held
    assert not {keys[i] for i in stay} & {keys[i] for i in held}


@given(KEYS, FRACTIONS, st.randoms())
def test_the_order_of_the_rows_does_not_matter(keys: list[str], fraction: float, random: object) -> None:
    shuffled = keys.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis draws a random.Random
    held = {keys[i] for i in split_by_prompt(keys, fraction=fraction, seed=0)[1]}
    assert {shuffled[i] for i in split_by_prompt(shuffled, fraction=fraction, seed=0)[1]} == held


@given(st.integers(2, 200), FRACTIONS, st.integers(0, 5))
def test_of_distinct_prompts_the_nearest_count_is_held_out(num_rows: int, fraction: float, seed: int) -> None:
    keys = [str(i) for i in range(num_rows)]
    held = split_by_prompt(keys, fraction=fraction, seed=seed)[1]
    assert len(held) in (1, num_rows - 1) or abs(len(held) - fraction * num_rows) <= 0.5


def test_by_value() -> None:
    # Pinned: a run resumed by a later version must hold out the rows it held out before.
    keys = ["a", "b", "c", "d", "a", "e", "f", "g", "h", "b"]
    assert split_by_prompt(keys, fraction=0.3, seed=0) == ([0, 1, 2, 4, 7, 8, 9], [3, 5, 6])
    assert split_by_prompt(keys, fraction=0.3, seed=1) == ([0, 1, 2, 3, 4, 5, 9], [6, 7, 8])
    assert split_by_prompt(keys, fraction=0, seed=1) == (list(range(10)), [])


def test_a_prompt_too_common_to_hold_out_is_passed_over() -> None:
    keys = ["common"] * 90 + [f"rare {i}" for i in range(10)]
    for seed in range(20):
        held = split_by_prompt(keys, fraction=0.05, seed=seed)[1]
        assert len(held) == 5
        assert min(held) >= 90


def test_one_prompt_cannot_be_divided() -> None:
    with pytest.raises(DataError) as caught:
        split_by_prompt(["a", "a", "a"], fraction=0.5, seed=0)
    assert str(caught.value) == "data.eval_fraction: 3 rows share one prompt, which cannot be on both sides"
