from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.choices import EvalGroups
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.preferences import Preference
from alignkit.data.sets.items import SourcedItem
from alignkit.data.sets.split import hold_out, split_by_key
from alignkit.errors import DataError

KEYS = st.lists(st.text(max_size=3), min_size=2, max_size=60).filter(lambda keys: len(set(keys)) > 1)
FRACTIONS = st.floats(0.001, 0.999)


@given(KEYS, FRACTIONS, st.integers(0, 1000))
def test_every_row_is_on_one_side_and_every_prompt_too(keys: list[str], fraction: float, seed: int) -> None:
    stay, held = split_by_key(keys, fraction=fraction, seed=seed)
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
    held = {keys[i] for i in split_by_key(keys, fraction=fraction, seed=0)[1]}
    assert {shuffled[i] for i in split_by_key(shuffled, fraction=fraction, seed=0)[1]} == held


@given(st.integers(2, 200), FRACTIONS, st.integers(0, 5))
def test_of_distinct_prompts_the_nearest_count_is_held_out(num_rows: int, fraction: float, seed: int) -> None:
    keys = [str(i) for i in range(num_rows)]
    held = split_by_key(keys, fraction=fraction, seed=seed)[1]
    assert len(held) in (1, num_rows - 1) or abs(len(held) - fraction * num_rows) <= 0.5


def test_by_value() -> None:
    # Pinned: a run resumed by a later version must hold out the rows it held out before.
    keys = ["a", "b", "c", "d", "a", "e", "f", "g", "h", "b"]
    assert split_by_key(keys, fraction=0.3, seed=0) == ([0, 1, 2, 4, 7, 8, 9], [3, 5, 6])
    assert split_by_key(keys, fraction=0.3, seed=1) == ([0, 1, 2, 3, 4, 5, 9], [6, 7, 8])
    assert split_by_key(keys, fraction=0, seed=1) == (list(range(10)), [])


def test_a_prompt_too_common_to_hold_out_is_passed_over() -> None:
    keys = ["common"] * 90 + [f"rare {i}" for i in range(10)]
    for seed in range(20):
        held = split_by_key(keys, fraction=0.05, seed=seed)[1]
        assert len(held) == 5
        assert min(held) >= 90


def conversation(*turns: str, system: str = "") -> Conversation:
    said = [Message("user" if number % 2 == 0 else "assistant", turn) for number, turn in enumerate(turns)]
    return Conversation((*([Message("system", system)] if system else []), *said))


def supervised(item: Conversation | Preference) -> set[tuple[Message, ...]]:
    """Every answer that a row trains, with all that stands before it."""
    rows = item.sides() if isinstance(item, Preference) else (item,)
    return {
        row.messages[: end + 1] for row in rows for end, turn in enumerate(row.messages) if turn.role == "assistant"
    }


# Conversations of a tree: three ways to begin, after every answer three ways to go on.
CONVERSATIONS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), min_size=2, max_size=30)


@pytest.mark.parametrize("kind", ["sft", "pairs"])
@given(CONVERSATIONS, FRACTIONS, st.integers(0, 20), st.sampled_from(["", "Be brief."]))
def test_no_answer_is_on_both_sides(kind: str, paths: list[list[str]], fraction: float, seed: int, system: str) -> None:
    paths = [["a"], ["b"], *paths]  # two beginnings at least
    said = [["".join(path[:end]) for end in range(1, len(path) + 1)] for path in paths]  # elsewhere nothing is the same
    rows: list[Any] = [conversation(*(turn for x in path for turn in (x, f"to {x}")), system=system) for path in said]
    if kind == "pairs":
        rows = [Preference(row.prompt(), row.messages[-1], Message("assistant", "No.")) for row in rows]
    items = {"train": [SourcedItem(f"rows.jsonl:{number}", row) for number, row in enumerate(rows, 1)]}
    found = hold_out(items, fraction=fraction, groups=None, seed=seed)
    trained, held_out = ([supervised(item.item) for item in found[name]] for name in ("train", "eval"))
    assert trained
    assert held_out
    assert not set().union(*trained) & set().union(*held_out)
    assert sorted(item.source for name in ("train", "eval") for item in found[name]) == sorted(
        item.source for item in items["train"]
    )


def test_rows_that_share_a_prompt_alone_are_grouped_where_that_is_chosen() -> None:
    rows = [conversation("Hi", "Hello", f"question {number}", "answer") for number in range(10)]
    items = {"train": [SourcedItem(f"rows.jsonl:{number}", row) for number, row in enumerate(rows, 1)]}
    found = hold_out(items, fraction=0.3, groups=EvalGroups.prompt, seed=0)
    assert (len(found["train"]), len(found["eval"])) == (7, 3)
    with pytest.raises(DataError) as caught:
        hold_out(items, fraction=0.3, groups=None, seed=0)
    assert str(caught.value) == (
        "data.eval_fraction: 10 rows begin with the same user turn, which cannot be on both sides: "
        "data.eval_groups=prompt groups by whole prompts"
    )


@pytest.mark.parametrize(
    ("groups", "why"), [(None, "begin with the same user turn"), (EvalGroups.prompt, "share one prompt")]
)
def test_one_prompt_cannot_be_divided(groups: EvalGroups | None, why: str) -> None:
    items = {"train": [SourcedItem("rows.jsonl:1", conversation("Hi", "Hello"))] * 3}
    with pytest.raises(DataError) as caught:
        hold_out(items, fraction=0.5, groups=groups, seed=0)
    assert str(caught.value) == f"data.eval_fraction: 3 rows {why}, which cannot be on both sides"


def held_out_of(rows: list[Any], seed: int) -> tuple[set[Message], set[Message]]:
    """The answers that are trained, and those that are held out."""
    items = {"train": [SourcedItem(f"rows.jsonl:{number}", row) for number, row in enumerate(rows, 1)]}
    found = hold_out(items, fraction=0.3, groups=None, seed=seed)
    trained, held_out = (
        {turn for item in found[name] for turn in item.item.messages if turn.role == "assistant"}
        for name in ("train", "eval")
    )
    return trained, held_out


@pytest.mark.parametrize("stride", [1, 2])
def test_windows_over_one_dialog_stay_on_one_side(stride: int) -> None:
    dialogs = [[f"{turn} of {number}" for turn in range(12)] for number in range(10)]
    rows = [conversation(*turns[at : at + 6]) for turns in dialogs for at in range(0, 7, 2 * stride)]
    for seed in range(10):
        trained, held_out = held_out_of(rows, seed)
        assert trained
        assert held_out
        assert not trained & held_out


def test_a_phrase_that_ends_many_conversations_does_not_join_them() -> None:
    rows = [conversation(f"question {n}", f"answer {n}", "Thanks!", "You're welcome.") for n in range(60)]
    for more in ([], [conversation("Thanks!", "You're welcome.", "One more.", "Yes?")]):  # and where one begins so
        trained, held_out = held_out_of([*rows, *more], 0)
        assert len(held_out) in (18, 19)
        assert trained & held_out == {Message("assistant", "You're welcome.")}


@pytest.mark.parametrize("history", [(), ("Thanks!", "You're welcome.")])
def test_pairs_turned_round_stay_on_one_side_under_any_system_message(history: tuple[str, ...]) -> None:
    rows: list[Any] = []
    for number in range(60):  # so many share the history that it joins none of them
        good, bad = Message("assistant", f"good {number}"), Message("assistant", f"bad {number}")
        for system, (chosen, rejected) in {"A": (good, bad), "B": (bad, good)}.items():
            prompt = conversation(*history, f"question {number}", system=f"{system} {number}")
            rows.append(Preference(prompt, chosen, rejected))
    items = {"train": [SourcedItem(f"rows.jsonl:{number}", row) for number, row in enumerate(rows, 1)]}
    found = hold_out(items, fraction=0.3, groups=None, seed=0)
    trained, held_out = ({item.item.prompt.question() for item in found[name]} for name in ("train", "eval"))
    assert len(held_out) == 18
    assert not trained & held_out


def test_windows_that_leave_nothing_to_hold_out_are_refused() -> None:
    turns = [f"turn {number}" for number in range(12)]
    items = {"train": [SourcedItem("rows.jsonl:1", conversation(*turns[at : at + 4])) for at in range(0, 9, 2)]}
    with pytest.raises(DataError, match=r"5 rows share turns, each with others, .*data.eval_groups=prompt"):
        hold_out(items, fraction=0.3, groups=None, seed=0)
