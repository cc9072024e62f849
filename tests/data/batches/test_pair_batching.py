"""Pairs into batches: every token in its place, and who may look at whom."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.batches.pair_batching import (
    CHOSEN,
    NOTHING,
    PROMPT,
    REJECTED,
    PairCollator,
    by_side,
    pairs_of,
    visible,
)

PAIR = {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5], "row_index": 7}
OTHER = {"prompt_ids": [6], "chosen_ids": [8], "rejected_ids": [9], "row_index": 8}


def test_a_shared_prompt_is_laid_once_and_its_last_token_begins_each_side() -> None:
    batch = PairCollator(0, shared_prompt=True)([PAIR, OTHER])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 2, 5], [6, 8, 6, 9, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 1, 2], [0, 1, 0, 1, 0, 0]]
    assert batch["parts"].tolist() == [
        [PROMPT, CHOSEN, CHOSEN, CHOSEN, REJECTED, REJECTED],
        [CHOSEN, CHOSEN, REJECTED, REJECTED, NOTHING, NOTHING],
    ]
    assert batch["shift_labels"].tolist() == [[-100, 3, 4, -100, 5, -100], [8, -100, 9, -100, -100, -100]]
    assert batch["row_index"].tolist() == [7, 8]


def test_apart_all_chosen_lines_come_before_the_rejected_ones() -> None:
    batch = PairCollator(0)([PAIR, OTHER])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [6, 8, 0, 0], [1, 2, 5, 0], [6, 9, 0, 0]]
    assert batch["shift_labels"].tolist() == [
        [-100, 3, 4, -100],
        [8, -100, -100, -100],
        [-100, 5, -100, -100],
        [9, -100, -100, -100],
    ]


def test_numbers_beside_the_tokens_come_along_as_floats() -> None:
    batch = PairCollator(0)([{**PAIR, "margin": 1, "ref_chosen_logps": -2.5, "ref_rejected_logps": -3.0}])
    assert batch["margin"].tolist() == [1.0]
    assert (batch["ref_chosen_logps"].item(), batch["ref_rejected_logps"].item()) == (-2.5, -3.0)


def test_what_a_response_begins_with_may_carry_no_loss() -> None:
    masked = {**PAIR, "chosen_masked": 1, "rejected_masked": 0}
    batch = PairCollator(0, shared_prompt=True)([masked])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 2, 5]]
    assert batch["shift_labels"].tolist() == [[-100, -100, 4, -100, 5, -100]]
    apart = PairCollator(0)([masked])
    assert apart["shift_labels"].tolist() == [[-100, -100, 4, -100], [-100, 5, -100, -100]]
    for either in (batch, apart):
        assert list(pairs_of(either)) == [(7, [1, 2], ([3, 4], [-100, 4]), ([5], [5]))]


def test_a_response_sees_the_prompt_and_itself_and_never_the_other() -> None:
    parts = torch.tensor([[PROMPT, CHOSEN, CHOSEN, REJECTED, REJECTED, NOTHING]])
    assert visible(parts).int()[0, 0].tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]


def test_values_by_side_are_the_same_in_both_layouts() -> None:
    for shared in (False, True):
        batch = PairCollator(0, shared_prompt=shared)([PAIR, OTHER])
        sides = by_side(batch["shift_labels"].clamp(min=0), batch["parts"], 2)
        assert [row[row > 0].tolist() for row in sides] == [[3, 4], [8], [5], [9]]


ids = st.lists(st.integers(1, 99), min_size=1, max_size=6)


@given(st.lists(st.tuples(ids, ids, ids), min_size=1, max_size=5), st.booleans())
def test_a_batch_reads_back_as_the_pairs_it_was_made_of(pairs: list[tuple[list[int], ...]], shared: bool) -> None:
    rows = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "row_index": i}
        for i, (prompt, chosen, rejected) in enumerate(pairs)
    ]
    found = list(pairs_of(PairCollator(0, shared_prompt=shared)(rows)))
    assert found == [(i, prompt, (one, one), (other, other)) for i, (prompt, one, other) in enumerate(pairs)]


def test_fillers_are_left_out_unless_there_is_nothing_else() -> None:
    filler = {"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0], "row_index": -1}
    assert PairCollator(0)([PAIR, filler, filler])["row_index"].tolist() == [7]
    assert PairCollator(0)([filler, filler])["row_index"].tolist() == [-1]
