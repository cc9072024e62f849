"""Prompts of rows with responses: of pairs what both sides answer, and nothing of the sides themselves."""

from pathlib import Path
from typing import Any

import pytest

from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.preferences import to_preference
from alignkit.data.rows.prompts import detect_prompts, read_prompt
from alignkit.data.rows.values import RowError

USER, ANSWER = {"role": "user", "content": "Up?"}, {"role": "assistant", "content": "Down."}
ASKED = Conversation((Message("user", "Up?"),))

PAIRS: list[tuple[str, dict[str, Any]]] = [
    ("hh", {"chosen": "\n\nHuman: Up?\n\nAssistant: Down.", "rejected": "\n\nHuman: Up?\n\nAssistant: No."}),
    ("hh", {"prompt": "\n\nHuman: Up?\n\nAssistant:", "chosen": " Down.", "rejected": " No."}),
    ("pairs", {"prompt": "Up?", "chosen": "Down.", "rejected": "No."}),
    ("pairs", {"prompt": "Up?", "chosen": None, "rejected": None}),
    ("pairs", {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "No."}]}),
    ("pairs", {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "No."}]}),
    ("pairs", {"prompt": "Up?", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}),
    (
        "sharegpt_pairs",
        {
            "conversations": [{"from": "human", "value": "Up?"}],
            "chosen": {"from": "gpt", "value": "Down."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ),
]


@pytest.mark.parametrize(("format", "row"), PAIRS)
def test_the_prompt_of_a_pair_is_what_its_responses_answer(format: str, row: dict[str, Any]) -> None:
    assert detect_prompts(row.keys(), row) == format
    assert read_prompt(row, format, {}) == ASKED
    if row["chosen"] is not None and row["chosen"] != row["rejected"]:
        assert to_preference(row, format, {}).prompt == ASKED


def test_a_prompt_of_several_turns_keeps_the_earlier_answers() -> None:
    sides = ("\n\nHuman: Up?\n\nAssistant: Down.\n\nHuman: And left?\n\nAssistant:" + end for end in (" Right.", " ?"))
    row = dict(zip(("chosen", "rejected"), sides, strict=True))
    assert [m.content for m in read_prompt(row, "hh", {}).messages] == ["Up?", "Down.", "And left?"]


def test_a_system_message_and_tools_stay_with_the_prompt() -> None:
    row = {"prompt": "Up?", "chosen": "a", "rejected": "b", "system": "Be brief."}
    assert read_prompt(row, "pairs", {}).messages == (Message("system", "Be brief."), *ASKED.messages)


def test_rows_without_pairs_are_detected_as_before() -> None:
    assert detect_prompts(["prompt"], {"prompt": "Up?"}) == "prompt"
    assert detect_prompts(["messages"], {}) == "messages"
    assert detect_prompts(["chosen", "prompt"], {}) == "prompt"


def test_a_pair_without_a_prompt_is_malformed() -> None:
    with pytest.raises(RowError, match="there is no prompt: no column holds one"):
        read_prompt({"chosen": [ANSWER], "rejected": [ANSWER]}, "pairs", {})


def test_the_other_side_counts_as_a_column_that_no_prompt_uses() -> None:
    seen = KeysSeen("not for prompts")
    read_prompt({"prompt": "Up?", "chosen": "Down.", "rejected": "No.", "margin": 2}, "pairs", {}, seen)
    assert seen.lines() == ["columns used: prompt, chosen", "not for prompts: rejected, margin"]


def test_a_function_that_makes_pairs_makes_prompts(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def pairs(row):\n    return {'prompt': row['q'], 'chosen': 'a', 'rejected': 'b'}\n"
        "def single(row):\n    return {'prompt': row['q']}\n"
        "def other(row):\n    return {'q': row['q']}\n"
    )
    for name in ("pairs", "single"):
        assert read_prompt({"q": "Up?"}, f"{own}:{name}", {}) == ASKED
    with pytest.raises(RowError, match=r"must return {'messages'}, {'prompt'} or {'prompt', 'chosen', 'rejected'}"):
        read_prompt({"q": "Up?"}, f"{own}:other", {})
