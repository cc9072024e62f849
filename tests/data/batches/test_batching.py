"""Rows into batches: the same rows whatever the layout, nothing seen across rows, an order every process agrees on."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from alignkit.choices import Batching
from alignkit.data.batches.batching import Collator, EpochOrder, pack, padding_share, row_tokens, rows_of

ROWS = [
    {"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, 8], "row_index": 0},
    {"input_ids": [9, 4], "labels": [-100, 4], "row_index": 1},
    {"input_ids": [3, 2, 1], "labels": [-100, 2, 1], "row_index": 2},
]


def test_a_padded_batch_by_value() -> None:
    batch = Collator(pad_id=0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 4, 0, 0], [3, 2, 1, 0]]
    # Nothing predicts a row's first token, so its label never counts.
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 4, -100, -100], [-100, 2, 1, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["row_index"].tolist() == [0, 1, 2]


def test_a_packed_batch_by_value() -> None:
    batch = Collator(pad_id=0, packed=True)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [3, 2, 1, 0], [9, 4, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, 2, 1, -100], [-100, 4, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 0]]
    assert batch["row_index"].tolist() == [0, 2, 1]
    assert "attention_mask" not in batch


def test_one_line_by_value() -> None:
    batch = Collator(pad_id=0, packed=True, one_line=True)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 3, 2, 1, 9, 4]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]


def test_tokens_of_rows_are_neither_padding_nor_fillers() -> None:
    filler = {"input_ids": [0, 0], "labels": [-100, -100], "row_index": -1}
    padded, packed = (Collator(pad_id=0, packed=packed) for packed in (False, True))
    assert row_tokens(padded([*ROWS, filler])).int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert row_tokens(packed([*ROWS, filler])).int().tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    for collator in (padded, packed):  # there must be something to compute
        assert collator([filler, filler])["input_ids"].tolist() == [[0, 0]]
        assert row_tokens(collator([filler, filler])).tolist() == [[False, False]]


rows = st.lists(st.integers(2, 30), min_size=1, max_size=12).map(
    lambda lengths: [
        {"input_ids": [n % 7 + 1] * n, "labels": [-100] + [n % 7 + 1] * (n - 1), "row_index": i}
        for i, n in enumerate(lengths)
    ]
)


@given(rows, st.sampled_from([Collator(0), Collator(0, packed=True), Collator(0, packed=True, one_line=True)]))
def test_a_batch_read_back_gives_its_rows(rows: list[dict], collator: Collator) -> None:
    found = {index: (ids, labels) for index, ids, labels in rows_of(collator(rows))}
    assert found == {row["row_index"]: (row["input_ids"], row["labels"]) for row in rows}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 90))
def test_bins_hold_every_row_once_and_never_overflow(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(i for line in bins for i in line) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in line) <= capacity for line in bins)


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=60),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([0, 1, 4, 8]),
)
def test_an_epoch_visits_every_row_once(lengths: list[int], seed: int, shuffle: bool, group: int) -> None:
    order = EpochOrder(lengths, seed=seed, shuffle=shuffle, group=group)
    assert Counter(order) == Counter(range(len(lengths)))


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other = (EpochOrder([3] * 20, seed=seed) for seed in (1, 1, 2))
    assert list(first) == list(again) != list(other)
    before = list(first)
    first.set_epoch(1)
    assert list(first) != before
    first.set_epoch(0)
    assert list(first) == before


def test_fillers_come_last() -> None:
    assert list(EpochOrder([5, 4, 3, 2, 2], seed=0, num_fillers=2))[3:] == [3, 4]


def test_grouping_brings_rows_of_like_length_together() -> None:
    lengths = [10, 200] * 40
    order = list(EpochOrder(lengths, seed=0, group=8))
    assert all(len({lengths[i] for i in order[at : at + 8]}) == 1 for at in range(0, 80, 8))


def test_rows_that_are_not_shuffled_keep_their_order_step_by_step() -> None:
    assert list(EpochOrder([3, 9, 1, 5, 7, 2, 8], seed=0, shuffle=False, group=3)) == [1, 0, 2, 4, 3, 5, 6]


def test_padding_share_by_value() -> None:
    shares = {
        layout: padding_share([4, 2, 2, 4], batch_size=2, rows_a_step=4, layout=layout, seed=0, shuffle=False)
        for layout in (Batching.padded, Batching.grouped, Batching.packed)
    }
    assert shares == {Batching.padded: 0.25, Batching.grouped: 0.0, Batching.packed: 0.25}
    assert padding_share([4, 2, 2], batch_size=3, rows_a_step=3, layout=Batching.packed, seed=0, shuffle=False) == 0.0
