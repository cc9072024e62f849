"""What was read of each source: how many rows, as what, how often each, and whether another setting reads them, too."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignkit.choices import Malformed
from alignkit.config import DataConfig
from alignkit.data.rows.row_kind import CONVERSATIONS
from alignkit.data.sets.items import parse_sets, read_sets
from alignkit.data.sets.ledger import Ledger
from alignkit.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows in `a.jsonl`, three in `b.jsonl`, no readable one in `broken.jsonl`, texts in `text.jsonl`."""
    monkeypatch.chdir(tmp_path)
    for name, number in (("a", 10), ("b", 3)):
        rows = ({"instruction": f"{name}{i}", "output": "x"} for i in range(number))
        Path(f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Path("broken.jsonl").write_text("{\n[]\n")
    Path("text.jsonl").write_text(json.dumps({"text": "Once.", "system": "Be brief."}) + "\n")


def lines(path: Any, **section: Any) -> list[str]:
    data = DataConfig(path, malformed=Malformed.drop, **section)
    _, read = parse_sets(read_sets(data, CONVERSATIONS, seed=0), CONVERSATIONS, Ledger(), malformed=data.malformed)
    return [source.line() for source in read]


def test_rows_and_format_of_each_source_are_said() -> None:
    assert lines(["a.jsonl", "text.jsonl"], eval_path="b.jsonl") == [
        "a.jsonl: 10 rows read as instruction",
        "text.jsonl: 1 row read as text",
        "b.jsonl: 3 rows read as instruction",
    ]


def test_a_source_has_its_own_limit_within_that_of_the_section() -> None:
    limited = [{"path": "a.jsonl", "limit": 4}, "b.jsonl"]
    assert lines(limited) == ["a.jsonl: 4 rows read as instruction", "b.jsonl: 3 rows read as instruction"]
    assert lines(limited, limit=6)[1] == "b.jsonl: 2 rows read as instruction"
    assert lines(limited, limit=3) == ["a.jsonl: 3 rows read as instruction", "b.jsonl: no row was read"]


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "x"])
def test_a_limit_is_a_whole_number(limit: Any) -> None:
    with pytest.raises(ConfigError, match=r"^data\.path\[0\]\.limit is .*: it must be a whole number above 0$"):
        lines([{"path": "a.jsonl", "limit": limit}])


def test_no_format_is_named_where_no_row_could_be_read() -> None:
    assert lines("broken.jsonl") == ["broken.jsonl: 2 rows none of which can be read"]


def test_weights_say_what_they_leave_out_and_add() -> None:
    weighed = [{"path": "a.jsonl", "weight": 0.3}, {"path": "b.jsonl", "weight": 2.34}]
    assert lines(weighed) == [
        "a.jsonl: 10 rows read as instruction, 7 of them left out by weight 0.3",
        "b.jsonl: 3 rows read as instruction, 4 copies added by weight 2.34",
    ]


def test_a_file_that_another_setting_reads_too_is_said() -> None:
    Path("link.jsonl").symlink_to("a.jsonl")
    assert lines(["a.jsonl", "./a.jsonl", "b.jsonl"], eval_path="link.jsonl") == [
        "a.jsonl: 10 rows read as instruction",
        "./a.jsonl: 10 rows read as instruction; data.path[0] reads it, too",
        "b.jsonl: 3 rows read as instruction",
        "link.jsonl: 10 rows read as instruction; data.path[0] reads it, too",
    ]
    assert lines(["a.jsonl", "[ab].jsonl"])[1].endswith("; data.path[0] reads some of it, too")


def test_a_column_for_a_field_that_the_detected_format_has_not_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^data\.columns\.system has no effect: the rows are read as text, which has no"
    ):
        lines("text.jsonl", columns={"system": "system"})
