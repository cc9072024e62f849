from __future__ import annotations

from typing import Any

from alignkit.data.rows.formats import to_conversation, to_prompt
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.preferences import to_preference


def test_columns_are_used_as_something_or_listed_once() -> None:
    seen = KeysSeen()
    row = {"id": 1, "instruction": "Hi", "input": "", "output": "Ho", "system": "Be brief."}
    for further in ({}, {"source": "web"}, {"functions": [], "kto_tag": True}):
        to_conversation(row | further, "instruction", {}, seen)
    assert seen.lines() == [
        "columns used: instruction (prompt), input (context), output (response), system (system message), "
        "functions (tools), kto_tag (rows to keep)",
        "columns not used: id, source",
    ]


def test_keys_of_messages_and_parts_are_listed_once() -> None:
    seen = KeysSeen()
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {}}], "id": 1},
        {"role": "assistant", "content": "Ho", "id": 2, "weight": 1, "time": 3},
    ]
    to_conversation({"messages": turns}, "messages", {}, seen)
    assert seen.lines() == ["columns used: messages (turns)", "message keys not used: id, content.cache_control, time"]


def lines(row: dict[str, Any], format: str, columns: dict[str, str]) -> list[str]:
    seen = KeysSeen()
    to_conversation(row, format, columns, seen)
    return seen.lines()


def test_what_is_used_depends_on_the_format_and_the_mapping() -> None:
    text = {"text": "Hi", "system": "a", "label": 0}
    assert lines(text, "text", {}) == ["columns used: text", "columns not used: system, label"]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    used = ["columns used: messages (turns)", "columns not used: prompt"]
    assert lines({"messages": turns, "prompt": "Hi"}, "messages", {}) == used
    mapped = {"q": "Hi", "nested": {"a": "Ho"}, "label": "Be brief.", "id": 1, "output": "x"}
    columns = {"instruction": "q", "output": "nested.a", "system": "label"}
    assert lines(mapped, "instruction", columns) == [
        "columns used: q (prompt), nested.a (response), label (system message)",
        "columns not used: id, output",
    ]


def test_a_prompt_reads_no_response_and_no_label() -> None:
    seen = KeysSeen("columns that no prompt uses")
    to_prompt({"prompt": "Hi", "completion": "Ho", "label": False, "answer": 3}, "prompt_completion", {}, seen)
    assert seen.lines() == ["columns used: prompt", "columns that no prompt uses: completion, label, answer"]


def test_pairs_and_what_a_function_returns(tmp_path: Any) -> None:
    seen = KeysSeen()
    sides = {"chosen": {"from": "gpt", "value": "yes", "score": 3}, "rejected": {"from": "gpt", "value": "no"}}
    to_preference(
        {"conversations": [{"from": "human", "value": "Hi"}], **sides, "margin": 1}, "sharegpt_pairs", {}, seen
    )
    assert seen.lines() == [
        "columns used: conversations (turns), chosen, rejected, margin",
        "message keys not used: score",
    ]
    own = tmp_path / "own_rows_seen.py"
    own.write_text("def read(row):\n    return {**row, 'prompt': row['q'], 'completion': 'Ho'}\n")
    seen = KeysSeen()
    to_conversation({"q": "Hi"}, f"{own}:read", {}, seen)
    assert seen.lines() == ["columns used: prompt, completion (response)", "columns not used: q"]
