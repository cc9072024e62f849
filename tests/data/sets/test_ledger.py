from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.choices import Overlength
from alignkit.data.sets.ledger import Ledger, LedgerRow
from alignkit.errors import DataError


def filled() -> Ledger:
    """100 training rows (88 kept, 4 without their input's end, 8 dropped) and two evaluation rows, one dropped."""
    ledger = Ledger()
    ledger.drop("a.json:20", "'output' is null", malformed=True)
    for number in range(1, 101):
        source = f"a.json:{number}"
        if number in (3, 9, 50, 51, 52):
            ledger.drop(source, "too_long")
        elif number in (7, 8):
            ledger.drop(source, "control_tokens")
        elif number in (30, 31, 32, 33):
            ledger.truncate(source, "cut_start")
        elif number != 20:
            ledger.keep(source)
    ledger.keep("b.json:1", "eval")
    ledger.drop("b.json:2", "too_long", "eval")
    return ledger


def test_counts() -> None:
    assert filled().counts() == {
        "train": {
            "dropped: malformed: 'output' is null": 1,
            "kept": 88,
            "dropped: too_long": 5,
            "dropped: control_tokens": 2,
            "truncated: cut_start": 4,
        },
        "eval": {"kept": 1, "dropped: too_long": 1},
    }


def test_the_budget_is_kept_to_the_row() -> None:
    ledger = Ledger()
    for number in range(95):
        ledger.keep(f"a.json:{number + 1}")
    for number in range(95, 100):
        ledger.drop(f"a.json:{number + 1}", "too_long")
    ledger.check_budget(0.05)
    with pytest.raises(DataError, match=r"^data: 5 of 100 rows were dropped \(5 %\)"):
        ledger.check_budget(0.049)


def test_a_broken_budget_says_why_where_and_the_way_out() -> None:
    with pytest.raises(DataError) as caught:
        filled().check_budget(0.05)
    assert caught.value.problems == (
        "data: 8 of 100 rows were dropped (8 %), more than data.max_dropped=0.05 allows: 5 too_long (a.json:3, "
        "a.json:9, …), 2 control_tokens (a.json:7, a.json:8), 1 malformed: 'output' is null (a.json:20); "
        "raise data.max_length, choose data.overlength=keep_end, choose data.control_tokens=neutralise, "
        "fix the malformed rows, or raise data.max_dropped",
        "data (set eval): 1 of 2 rows were dropped (50 %), more than data.max_dropped=0.05 allows: 1 too_long "
        "(b.json:2); raise data.max_length, choose data.overlength=keep_end, or raise data.max_dropped",
    )


def test_no_row_left_is_an_error_whatever_the_budget() -> None:
    ledger = Ledger()
    with pytest.raises(DataError, match=r"^data: there are no rows$"):
        ledger.check_budget(1.0)
    ledger.drop("a.json:1", "nothing_to_learn")
    with pytest.raises(DataError) as caught:
        ledger.check_budget(1.0)
    assert str(caught.value) == (
        "data: no row is left of 1: 1 nothing_to_learn (a.json:1); look at data.train_on and the rows' train flags"
    )


def test_a_reason_without_a_way_out_and_many_reasons() -> None:
    ledger = Ledger()
    for number in range(7):
        ledger.drop(f"a.json:{number + 1}", f"reason {number}")
    with pytest.raises(DataError) as caught:
        ledger.check_budget(1.0)
    assert str(caught.value) == (
        "data: no row is left of 7: 1 reason 0 (a.json:1), 1 reason 1 (a.json:2), 1 reason 2 "
        "(a.json:3), 1 reason 3 (a.json:4), 1 reason 4 (a.json:5), … and 2 more reasons"
    )


def test_rows_labelled_bad_are_no_part_of_the_budget_but_one_must_be_left() -> None:
    ledger = Ledger()
    for number in range(1, 4):
        ledger.drop(f"a.json:{number}", "labelled_bad")
    with pytest.raises(DataError, match=r"^data: no row is left of 3: 3 labelled_bad \(a.json:1, a.json:2, …\)$"):
        ledger.check_budget(0)
    ledger.keep("a.json:4")
    ledger.check_budget(0)


def test_rows_left_out_by_weight_are_no_part_of_the_budget() -> None:
    ledger = Ledger()
    for number in range(1, 10):
        ledger.drop(f"a.json:{number}", "weight")
    ledger.keep("a.json:10")
    ledger.check_budget(0)
    assert ledger.counts() == {"train": {"dropped: weight": 9, "kept": 1}}


def test_rows_are_written_in_the_order_of_the_sources(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.drop("data/b.json:10", "too_long")
    ledger.keep("data/b.json:9", "eval")
    ledger.truncate("a:2.jsonl:1", "cut_end")
    ledger.keep("data/b.json:2")
    ledger.write(tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "data/b.json:2", "fate": "kept", "reason": "", "set": "train"},
        {"source": "data/b.json:9", "fate": "kept", "reason": "", "set": "eval"},
        {"source": "data/b.json:10", "fate": "dropped", "reason": "too_long", "set": "train"},
        {"source": "a:2.jsonl:1", "fate": "truncated", "reason": "cut_end", "set": "train"},
    ]


def test_a_file_that_could_not_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps, rows = json.dumps, []

    def cut_short(row: dict[str, str]) -> str:
        rows.append(row)
        if len(rows) == 3:
            raise OSError("No space left on device")
        return dumps(row)

    monkeypatch.setattr(json, "dumps", cut_short)
    with pytest.raises(OSError, match="No space left"):
        filled().write(tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()  # whole lines would look like fewer rows, and the run could not go on


def test_the_table() -> None:
    ledger = filled()
    ledger.notes["neutralized control tokens"] += 1234
    assert ledger.table().splitlines() == [
        "                                      train  eval",
        "kept                                     88     1",
        "truncated: cut_start                      4     0  a.json:30, a.json:31, …",
        "dropped: too_long                         5     1  a.json:3, a.json:9, …",
        "dropped: control_tokens                   2     0  a.json:7, a.json:8",
        "dropped: malformed: 'output' is null      1     0  a.json:20",
        "all rows                                100     2",
        "neutralized control tokens: 1,234",
    ]


ROWS = st.lists(
    st.tuples(st.sampled_from(["kept", "truncated", "dropped"]), st.sampled_from(["x", "y"]), st.integers(1, 99))
)


@given(ROWS)
def test_every_row_is_counted_once(rows: list[tuple[str, str, int]]) -> None:
    ledger = Ledger()
    for fate, name, number in rows:
        if fate == "kept":
            ledger.keep(f"f:{number}", name)
        elif fate == "truncated":
            ledger.truncate(f"f:{number}", "cut", name)
        else:
            ledger.drop(f"f:{number}", "long", name)
    assert sum(count for labels in ledger.counts().values() for count in labels.values()) == len(rows)
    assert all(isinstance(row, LedgerRow) for row in ledger.rows)
    total = ledger.table().splitlines()[-1].split()[2:]
    assert sum(map(int, total)) == len(rows)


@pytest.mark.parametrize(
    ("policy", "advice"),
    [
        ("drop", "raise data.max_length, choose data.overlength=keep_end"),
        ("keep_end", "a response alone is longer than data.max_length"),
        ("keep_start", "a prompt alone fills data.max_length"),
    ],
)
def test_the_policy_in_force_is_never_the_advice(policy: str, advice: str) -> None:
    ledger = Ledger(Overlength(policy))
    ledger.drop("a.json:1", "too_long")
    with pytest.raises(DataError) as caught:
        ledger.check_budget(0.05)
    assert advice in str(caught.value)
    assert f"choose data.overlength={policy}" not in str(caught.value)
