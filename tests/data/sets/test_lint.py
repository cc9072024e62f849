"""What is odd about pairs is found, counted and placed."""

from collections.abc import Callable
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.choices import Malformed, Overlength
from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.preferences import Preference
from alignkit.data.sets.items import SourcedItem
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.lint import Lint, lint
from alignkit.data.sets.pairs import load_pairs


@pytest.fixture
def found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., Path], byte: Any
) -> Callable[..., Lint]:
    """The lint of rows given as (prompt, chosen, rejected)."""
    monkeypatch.chdir(tmp_path)
    template = load_template(TemplateConfig(name="user_bot"), byte)

    def found(*rows: tuple[Any, Any, Any], **rest: Any) -> Lint:
        write_rows([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])
        data = DataConfig(path="rows.jsonl", max_dropped=1, malformed=Malformed.drop, **rest)
        return load_pairs(data, template, byte, max_length=40, seed=0).lint

    return found


def test_sound_pairs_say_nothing(found: Callable[..., Lint]) -> None:
    lint = found(("a", "long", "b"), ("c", "d", "long"))
    assert lint == Lint(num_pairs=2)
    assert lint.warning() is None
    assert lint.lines() == [
        "0 have an empty or missing text",
        "0 have identical sides",
        "0 have a different prompt on each side",
        "0 are made equal by truncation",
        "0 repeat an earlier pair",
        "0 contradict an earlier pair",
        "length: the longer side is chosen in 50.0% of 2 pairs, so length alone predicts 50.0% of the labels "
        "(AUC of the difference 0.500)",
    ]


def test_pairs_that_were_left_out_are_told_by_reason(found: Callable[..., Lint]) -> None:
    whole = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lint = found(
        ("a", "same", "same"),
        ("a", "same", "same"),
        ("a", "x" * 30 + "!", "x" * 30 + "?"),
        ("a", "b", ""),
        ("a", None, "b"),
        ("other", whole, whole),
        ("a", "b", "c"),
        overlength=Overlength.keep_start,
    )
    assert lint.dropped == {
        "empty": ["rows.jsonl:4", "rows.jsonl:5"],
        "identical": ["rows.jsonl:1", "rows.jsonl:2"],
        "prompts_differ": ["rows.jsonl:6"],
        "equal_when_cut": ["rows.jsonl:3"],
    }
    assert lint.lines()[:4] == [
        "2 have an empty or missing text (rows.jsonl:4, rows.jsonl:5)",
        "2 have identical sides (rows.jsonl:1, rows.jsonl:2)",
        "1 have a different prompt on each side (rows.jsonl:6)",
        "1 are made equal by truncation (rows.jsonl:3)",
    ]
    assert lint.num_pairs == 1


def test_repeated_and_contradicting_pairs_name_the_one_before(found: Callable[..., Lint]) -> None:
    lint = found(("a", "b", "c"), ("x", "b", "c"), ("a", "c", "b"), ("a", "b", "c"), ("a", "b", "d"))
    assert lint.contradictions == [("rows.jsonl:3", "rows.jsonl:1"), ("rows.jsonl:4", "rows.jsonl:3")]
    assert lint.duplicates == [("rows.jsonl:4", "rows.jsonl:1")]
    assert lint.warning() == (
        "pairs: 2 contradict an earlier pair (rows.jsonl:3 against rows.jsonl:1, rows.jsonl:4 against "
        "rows.jsonl:3); 1 repeat an earlier pair (rows.jsonl:4 as rows.jsonl:1)"
    )


def test_pairs_that_differ_in_their_reasoning_alone_repeat_nothing() -> None:
    def pair(reasoning: str, tools: tuple[Any, ...] = ()) -> SourcedItem[Preference]:
        prompt = Conversation((Message("user", "Hi"),), tools=tools)
        chosen = Message("assistant", "yes", reasoning=reasoning)
        return SourcedItem(f"a.json:{next(number)}", Preference(prompt, chosen, Message("assistant", "no")))

    number = count(1)
    add = ({"type": "function", "function": {"name": "add"}},)
    pairs = [pair("Hm."), pair("Oh."), pair("Hm.", add), pair("Oh.")]
    assert lint({"train": pairs}, Ledger(), []).duplicates == [("a.json:4", "a.json:2")]


def test_a_pair_that_is_trained_on_and_held_out_is_found(
    found: Callable[..., Lint], write_rows: Callable[..., Path]
) -> None:
    write_rows([{"prompt": "a", "chosen": "b", "rejected": "c"}], "held.jsonl")
    assert found(("a", "b", "c"), eval_path="held.jsonl").duplicates == [("held.jsonl:1", "rows.jsonl:1")]


@pytest.mark.parametrize(
    ("sizes", "share", "auc", "warning"),
    [
        ([(3, 1), (3, 1), (1, 3)], 2 / 3, 6 / 9, "the longer side is chosen in 66.7%"),
        ([(1, 3), (1, 2), (1, 9), (4, 4)], 1 / 8, 0.5 / 16, "the shorter side is chosen in 87.5%"),
        ([(2, 1)], 1.0, 1.0, "the longer side is chosen in 100.0%"),
        ([(9, 1), (1, 2)], 0.5, 0.75, None),
        ([(2, 2)], 0.5, 0.5, None),
        ([], 0.5, 0.5, None),
    ],
)
def test_length_bias_by_value(sizes: list[tuple[int, int]], share: float, auc: float, warning: str | None) -> None:
    sides = [[a for a, _ in sizes], [b for _, b in sizes]]
    found = lint({}, Ledger(), [(sides[0], sides[1])])
    assert (found.longer_chosen, found.length_auc, found.num_pairs) == (share, auc, len(sizes))
    assert found.length_accuracy == max(share, 1 - share)
    expected = None if warning is None else f"pairs: {warning}: length alone predicts the label"
    assert found.warning() == expected


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30))
def test_the_auc_is_that_of_every_pair_against_every_mirror_image(sizes: list[tuple[int, int]]) -> None:
    by = [a - b for a, b in sizes]
    slow = sum((x > -y) + (x == -y) / 2 for x, y in product(by, by)) / len(by) ** 2
    assert lint({}, Ledger(), [([a for a, _ in sizes], [b for _, b in sizes])]).length_auc == pytest.approx(slow)
