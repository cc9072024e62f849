"""Pairs over the limit: dropped, or both sides cut alike, so that neither wins by what was taken from the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.choices import Overlength
from alignkit.data.encode.pair_lengths import EncodedPair, apply_pair_length

PAIR = EncodedPair([1, 2, 11, 12, 13, 8, 9], [21, 22, 23, 0], [31, 0], margin=0.5, notes=("note",))


def cut(max_length: int, policy: str, pair: EncodedPair = PAIR) -> tuple[list[list[int]] | None, str]:
    """Ids of the prompt and both sides, with a head of 2 tokens and a cue of 2."""
    kept, reason = apply_pair_length(
        pair, prefix_length=2, suffix_length=2, max_length=max_length, policy=Overlength[policy]
    )
    if kept is None:
        return None, reason
    assert (kept.margin, kept.notes) == (pair.margin, pair.notes)
    return [kept.prompt_ids, kept.chosen_ids, kept.rejected_ids], reason


@pytest.mark.parametrize("policy", list(Overlength))
def test_the_longer_side_says_whether_a_pair_fits(policy: str) -> None:
    assert cut(11, policy) == ([[1, 2, 11, 12, 13, 8, 9], [21, 22, 23, 0], [31, 0]], "")


@pytest.mark.parametrize(
    ("max_length", "policy", "expected"),
    [
        (10, "drop", (None, "too_long")),
        (10, "keep_end", ([[1, 2, 12, 13, 8, 9], [21, 22, 23, 0], [31, 0]], "cut_start")),
        (8, "keep_end", ([[1, 2, 8, 9], [21, 22, 23, 0], [31, 0]], "cut_start")),
        (7, "keep_end", (None, "too_long")),
        (10, "keep_start", ([[1, 2, 11, 12, 13, 8, 9], [21, 22, 23], [31, 0]], "cut_end")),
        (8, "keep_start", ([[1, 2, 11, 12, 13, 8, 9], [21], [31]], "cut_end")),
        (7, "keep_start", (None, "too_long")),
    ],
)
def test_each_policy_by_value(max_length: int, policy: str, expected: tuple[list[list[int]] | None, str]) -> None:
    assert cut(max_length, policy) == expected


def test_a_pair_made_equal_by_the_cut_is_told_apart_from_one_that_was_equal() -> None:
    alike = EncodedPair([1, 2, 8, 9], [21, 22, 0], [21, 23, 0])
    assert cut(6, "keep_start", alike) == ([[1, 2, 8, 9], [21, 22], [21, 23]], "cut_end")
    assert cut(5, "keep_start", alike) == (None, "equal_when_cut")
    assert cut(99, "keep_start", EncodedPair([1], [21, 0], [21, 0])) == (None, "identical")


def test_only_what_carries_loss_tells_the_sides_apart() -> None:
    thoughts = EncodedPair([1], [21, 22, 5, 0], [31, 6, 0], chosen_masked=2, rejected_masked=1)
    assert cut(99, "keep_start", thoughts) == ([[1], [21, 22, 5, 0], [31, 6, 0]], "")
    assert cut(4, "keep_start", thoughts) == ([[1], [21, 22, 5], [31, 6, 0]], "cut_end")
    assert cut(3, "keep_start", thoughts) == (None, "nothing_to_learn")  # the reasoning alone would be left
    assert cut(99, "keep_start", EncodedPair([1], [21, 5], [31, 5], 1, 1)) == (None, "identical")


ids = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(ids, ids, ids, st.integers(0, 3), st.integers(0, 3), st.integers(1, 30), st.sampled_from(list(Overlength)))
def test_what_holds_for_every_pair(
    prompt: list[int], chosen: list[int], rejected: list[int], head: int, cue: int, max_length: int, policy: Overlength
) -> None:
    pair = EncodedPair(prompt, chosen, rejected)
    kept, reason = apply_pair_length(pair, prefix_length=head, suffix_length=cue, max_length=max_length, policy=policy)
    if kept is None:
        assert reason in ("too_long", "identical", "equal_when_cut")
        assert (reason == "identical") == (chosen == rejected)
        return
    assert len(kept.prompt_ids) + max(len(kept.chosen_ids), len(kept.rejected_ids)) <= max_length
    assert kept.chosen_ids != kept.rejected_ids
    assert kept.chosen_ids
    assert kept.rejected_ids
    assert (reason == "") == (kept == pair)
    if reason == "cut_start":
        assert policy is Overlength.keep_end
        assert (kept.chosen_ids, kept.rejected_ids) == (chosen, rejected)
        assert kept.prompt_ids[:head] == prompt[:head]
        assert kept.cuts == {"prompt_ids": head}
        assert not cue or kept.prompt_ids[-cue:] == prompt[-cue:]
        assert len(kept.prompt_ids) + max(len(chosen), len(rejected)) == max_length  # no more than needed
    if reason == "cut_end":
        assert policy is Overlength.keep_start
        room = max_length - len(prompt)
        cuts = {"chosen_ids": len(chosen), "rejected_ids": len(rejected)}
        assert kept.cuts == {side: room for side, length in cuts.items() if length > room}
        assert (kept.prompt_ids, kept.chosen_ids, kept.rejected_ids) == (prompt, chosen[:room], rejected[:room])
