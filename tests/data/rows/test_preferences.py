"""Rows of each pair format become one prompt with two responses, or a reason why not."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.formats import check_format, detect_format
from alignkit.data.rows.preferences import PAIR_FIELDS, Preference, detect_pairs, to_preference
from alignkit.data.rows.values import RowError, RowUnusable
from alignkit.errors import DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"  # about twenty rows each, in the shapes of well-known data sets
HI = "\n\nHuman: Hi\n\nAssistant:"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def pair(*prompt: tuple[str, str], margin: float | None = None) -> Preference:
    messages = tuple(Message(role, text) for role, text in prompt)
    return Preference(Conversation(messages), Message("assistant", "yes"), Message("assistant", "no"), margin)


ONE = pair(("user", "Hi"))
SYSTEM = pair(("system", "Be kind."), ("user", "Hi"))
MANY = pair(("user", "Hi"), ("assistant", "Ho"), ("user", "And?"))
TURNS = [user("Hi"), says("Ho"), user("And?")]


@pytest.mark.parametrize(
    ("row", "format", "expected"),
    [
        ({"prompt": "Hi", "chosen": "yes", "rejected": "no"}, "pairs", ONE),
        ({"prompt": "Hi", "chosen": "yes", "rejected": "no", "system": "Be kind."}, "pairs", SYSTEM),
        ({"prompt": "Hi", "chosen": "yes", "rejected": "no", "system": None}, "pairs", ONE),
        ({"prompt": TURNS, "chosen": "yes", "rejected": "no"}, "pairs", MANY),
        ({"prompt": TURNS, "chosen": [says("yes")], "rejected": [says("no")]}, "pairs", MANY),
        ({"prompt": "Hi", "chosen": says("yes"), "rejected": says("no")}, "pairs", ONE),
        (  # UltraFeedback: the prompt once more beside whole conversations, and columns of no interest
            {
                "prompt": "Hi",
                "prompt_id": "2f",
                "chosen": [user("Hi"), says("yes")],
                "rejected": [user("Hi"), says("no")],
                "score_chosen": 8.0,
                "score_rejected": 3.5,
            },
            "pairs",
            ONE,
        ),
        ({"prompt": "And?", "chosen": [*TURNS, says("yes")], "rejected": [*TURNS, says("no")]}, "pairs", MANY),
        ({"chosen": [*TURNS, says("yes")], "rejected": [*TURNS, says("no")]}, "pairs", MANY),
        ({"prompt": TURNS, "chosen": [*TURNS, says("yes")], "rejected": [*TURNS, says("no")]}, "pairs", MANY),
        (  # sides that go on from the prompt for more than a turn
            {
                "prompt": "Hi",
                "chosen": [says("Ho"), user("And?"), says("yes")],
                "rejected": [says("Ho"), user("And?"), says("no")],
            },
            "pairs",
            MANY,
        ),
        ({"prompt": None, "chosen": [user("Hi"), says("yes")], "rejected": [user("Hi"), says("no")]}, "pairs", ONE),
        ({"conversations": [human("Hi")], "chosen": gpt("yes"), "rejected": gpt("no")}, "sharegpt_pairs", ONE),
        ({"conversations": [human("Hi")], "chosen": [gpt("yes")], "rejected": [gpt("no")]}, "sharegpt_pairs", ONE),
        ({"conversations": [human("Hi")], "chosen": "yes", "rejected": "no"}, "sharegpt_pairs", ONE),
        (
            {"conversations": [human("Hi")], "chosen": "yes", "rejected": "no", "system": "Be kind."},
            "sharegpt_pairs",
            SYSTEM,
        ),
        (
            {
                "conversations": [human("Hi"), gpt("Ho"), human("And?")],
                "chosen": gpt("yes"),
                "rejected": gpt("no"),
            },
            "sharegpt_pairs",
            MANY,
        ),
        ({"chosen": f"{HI} yes", "rejected": f"{HI} no"}, "hh", ONE),
        (
            {
                "chosen": f"{HI} Ho\n\nHuman: And?\n\nAssistant: yes",
                "rejected": f"{HI} Ho\n\nHuman: And?\n\nAssistant: no",
            },
            "hh",
            MANY,
        ),
        ({"chosen": f"{HI.strip()} yes", "rejected": f"{HI} no"}, "hh", ONE),
        ({"prompt": HI, "chosen": " yes", "rejected": " no"}, "hh", ONE),
        ({"prompt": f"{HI} ", "chosen": "yes", "rejected": "no"}, "hh", ONE),
        ({"prompt": "Hi", "chosen": f"{HI} yes", "rejected": f"{HI} no"}, "hh", ONE),
    ],
)
def test_a_row_of_each_format(row: dict[str, Any], format: str, expected: Preference) -> None:
    assert detect_pairs(row.keys(), row) == format
    assert to_preference(row, format, {}) == expected


def test_train_flags_of_messages_mean_nothing_here() -> None:
    row = {"prompt": [user("Hi") | {"train": True}], "chosen": [says("yes") | {"weight": 0}], "rejected": [says("no")]}
    assert to_preference(row, "pairs", {}) == ONE


def test_columns_by_other_names_and_in_nested_data() -> None:
    columns = {"prompt": "q", "chosen": "answers.0", "rejected": "answers.1", "margin": "gap"}
    row = {"q": "Hi", "answers": ["yes", "no"], "gap": 2, "prompt": "not this"}
    assert detect_pairs(row.keys(), row, columns=columns) == "pairs"
    assert to_preference(row, "pairs", columns) == pair(("user", "Hi"), margin=2.0)


@pytest.mark.parametrize(("value", "margin"), [(1, 1.0), (-0.5, -0.5), ("1.5", 1.5), (None, None), ("", None)])
def test_margins(value: Any, margin: float | None) -> None:
    row = {"prompt": "Hi", "chosen": "yes", "rejected": "no", "margin": value}
    assert to_preference(row, "pairs", {}).margin == margin


def reason(row: Any, format: str = "pairs") -> str:
    with pytest.raises(RowError) as caught:
        to_preference(row, format, {})
    assert not isinstance(caught.value, RowUnusable)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rejected": None}, "'rejected' is null"),
        ({"chosen": None}, "'chosen' is null"),
        ({"chosen": ""}, "'chosen' is empty"),
        ({"rejected": " \n"}, "'rejected' is empty"),
        ({"rejected": []}, "'rejected' is empty"),
        ({"rejected": 7}, "'rejected' is a number where text belongs"),
        ({"rejected": [says("")]}, "'rejected': an assistant message is empty"),
        ({"rejected": [says("no")]}, "'chosen' is text and 'rejected' is a list: both sides must be of one type"),
        ({"chosen": gpt("yes")}, "'chosen' is an object and 'rejected' is text: both sides must be of one type"),
        ({"rejected": [says("no"), user("?")]}, "'rejected' does not end with the assistant"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": 7}, "'prompt' is a number where text belongs"),
        ({"prompt": [user("Hi"), says("Ho")]}, "'prompt' ends with the assistant, and a prompt with the user"),
        ({"prompt": None}, "there is no prompt: no column holds one, and 'chosen' does not begin with one"),
        ({"margin": "much"}, "'margin' is text where a finite number belongs"),
        ({"margin": float("nan")}, "'margin' is a number where a finite number belongs"),
        ({"margin": True}, "'margin' is true or false where a finite number belongs"),
        ({"rejected": "\ud800"}, "'rejected' holds half a character (a lone surrogate)"),
    ],
)
def test_what_is_wrong_with_a_row(changes: dict[str, Any], text: str) -> None:
    assert reason({"prompt": "Hi", "chosen": "yes", "rejected": "no"} | changes) == text


@pytest.mark.parametrize(
    ("rejected", "text"),
    [
        (f"{HI} Ho\n\nHuman: And?", "'rejected' does not end with the assistant"),
        (f"{HI} ", "'rejected' has an empty turn"),
        (None, "'rejected' is null"),
        ("no", "'rejected' is no transcript '\\n\\nHuman: … \\n\\nAssistant: …'"),
        (f"So:{HI} no", "'rejected' is no transcript '\\n\\nHuman: … \\n\\nAssistant: …'"),
        ("\n\nHuman: Hi\n\nHuman: Ho\n\nAssistant: no", "two user messages in a row"),
        ("\n\nAssistant: no", "starts with an assistant message"),
    ],
)
def test_what_is_wrong_with_a_transcript(rejected: str, text: str) -> None:
    assert reason({"chosen": f"{HI} yes", "rejected": rejected}, "hh") == text


def test_no_row_at_all() -> None:
    assert reason(["Hi", "yes", "no"]) == "not an object"
    assert reason({"prompt": "Hi", "chosen": "yes"}) == "no field 'rejected'"


@pytest.mark.parametrize(
    ("row", "format", "text"),
    [
        ({"prompt": "Hi", "chosen": "yes", "rejected": "yes"}, "pairs", "identical"),
        ({"prompt": "Hi", "chosen": [says("yes")], "rejected": [says("yes")]}, "pairs", "identical"),
        ({"chosen": f"{HI} yes", "rejected": f"{HI} yes"}, "hh", "identical"),
        ({"chosen": [user("Hi"), says("a")], "rejected": [user("Ho"), says("b")]}, "pairs", "prompts_differ"),
        (
            {"prompt": "Ha", "chosen": [user("Hi"), says("a")], "rejected": [user("Hi"), says("b")]},
            "pairs",
            "prompts_differ",
        ),
        ({"chosen": f"{HI} yes", "rejected": "\n\nHuman: Ho\n\nAssistant: no"}, "hh", "prompts_differ"),
        ({"chosen": f"{HI} yes", "rejected": f"{HI} Ho\n\nHuman: And?\n\nAssistant: no"}, "hh", "prompts_differ"),
    ],
)
def test_pairs_of_no_use_are_not_malformed(row: dict[str, Any], format: str, text: str) -> None:
    with pytest.raises(RowUnusable) as caught:
        to_preference(row, format, {})
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"question": "Hi", "good": "yes"},
            "data.format: there is no 'chosen' and no 'rejected' among the columns good (text), question (text); "
            "name yours with data.columns={chosen: column, rejected: column}",
        ),
        (
            {"prompt": "Hi", "chosen": "yes"},
            "data.format: there is no 'rejected' among the columns chosen (text), prompt (text); "
            "name yours with data.columns={chosen: column, rejected: column}",
        ),
        (
            {"prompt": "Hi", "completion": "yes", "label": True},
            "data.path: the columns completion (text), label (true or false), prompt (text) are single responses "
            "labelled good or bad; such unpaired preferences are not supported: pair a good and a bad response to each "
            "prompt as prompt, chosen, rejected",
        ),
        (
            {"instruction": "Hi", "output": "yes"},
            "data.path: the columns instruction (text), output (text) are single responses (instruction), as for "
            "alignkit sft; pairs need chosen and rejected: name them with "
            "data.columns={chosen: column, rejected: column}",
        ),
        (
            {"prompt": "Hi"},
            "data.path: the columns prompt (text) are prompts alone; pairs need chosen and rejected: name them with "
            "data.columns={chosen: column, rejected: column}",
        ),
        (
            {"chosen": "yes", "rejected": "no", "question": "Hi"},
            "data.format: the columns chosen (text), question (text), rejected (text) hold no prompt, and chosen and "
            "rejected are no transcripts '\\n\\nHuman: … \\n\\nAssistant: …' that begin with one; name its column with "
            "data.columns.prompt=COLUMN",
        ),
        (
            {"prompt": "Hi", "conversations": [], "chosen": "yes", "rejected": "no"},
            "data.format: pairs and sharegpt_pairs fit the columns chosen (text), conversations (a list), prompt "
            "(text), rejected (text); pairs takes its prompt from prompt, sharegpt_pairs from conversations; choose "
            "one with data.format",
        ),
    ],
)
def test_rows_that_are_no_pairs_are_refused_by_name(row: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError) as caught:
        detect_pairs(row.keys(), row)
    assert str(caught.value) == text


def test_pairs_are_refused_where_single_responses_belong() -> None:
    assert check_format("hh", {}, setting="data") == [
        "data.format=hh is for pairs, not single responses; one of auto, instruction, prompt_completion, messages, "
        "sharegpt, text, prompt"
    ]
    with pytest.raises(DataError, match="these are preference pairs"):
        detect_format(["prompt", "chosen", "rejected"], {})


@pytest.mark.parametrize(
    ("format", "columns", "problems"),
    [
        ("auto", {"prompt": "q", "margin": "gap"}, []),
        ("hh", {"chosen": "a"}, []),
        (
            "instruction",
            {},
            ["data.format=instruction is for single responses, not pairs; one of auto, pairs, sharegpt_pairs, hh"],
        ),
        ("pair", {}, ["data.format: unknown format 'pair'; did you mean 'pairs'?"]),
        ("auto", {"chose": "a"}, ["data.columns: no format has a field 'chose'; did you mean 'chosen'?"]),
        (
            "hh",
            {"label": "a"},
            [
                "data.columns: no format has a field 'label'; one of chat_template_kwargs, chosen, documents, history, "
                "margin, parallel_tool_calls, prompt, reasoning_effort, rejected, system, tool_choice, tools"
            ],
        ),
    ],
)
def test_formats_and_columns_are_checked_by_name(format: str, columns: dict[str, Any], problems: list[str]) -> None:
    assert check_format(format, columns, setting="data", fields=PAIR_FIELDS) == problems


OWN = f"""
def pair(row):
    return {{"prompt": row["q"], "chosen": row["a"], "rejected": row["b"]}}

def hh(row):
    return {{"chosen": {HI!r} + row["a"], "rejected": {HI!r} + row["b"]}}

def half(row):
    return {{"prompt": row["q"], "chosen": row["a"]}}
"""


def test_a_function_of_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "own_pairs.py"
    own.write_text(OWN)
    row = {"q": "Hi", "a": "yes", "b": "no"}
    assert to_preference(row, f"{own}:pair", {}) == ONE
    assert to_preference(row, f"{own}:hh", {}) == ONE
    assert reason(row, f"{own}:half") == (
        f"{own}:half returned an object: it must return {{'prompt', 'chosen', 'rejected'}}"
    )
    assert reason({"q": "Hi"}, f"{own}:pair") == f"{own}:pair raised KeyError: 'a'"
    assert reason(row | {"b": None}, f"{own}:pair") == f"{own}:pair returned a row that is wrong: 'rejected' is null"
    with pytest.raises(RowUnusable, match="identical"):
        to_preference(row | {"b": "yes"}, f"{own}:pair", {})


def test_pairs_of_one_prompt_share_its_key() -> None:
    key = MANY.prompt_key()
    other = Preference(MANY.prompt, Message("assistant", "so"), Message("assistant", "not so"))
    assert other.prompt_key() == key == Conversation((*MANY.prompt.messages, MANY.chosen)).prompt_key()
    assert ONE.prompt_key() != key


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]) | st.text(), x),
)


@given(values, values, values, st.sampled_from(list(PAIR_FIELDS)))
def test_any_row_is_a_pair_or_has_a_reason(prompt: Any, chosen: Any, rejected: Any, format: str) -> None:
    row = {"prompt": prompt, "conversations": prompt, "chosen": chosen, "rejected": rejected}
    with suppress(RowError):
        found = to_preference(row, format, {})
        assert found.chosen != found.rejected


def test_rows_as_data_sets_have_them() -> None:
    rows = json.loads((FIXTURES / "pairs.json").read_text(encoding="utf-8"))
    assert detect_pairs(rows[0].keys(), rows[0]) == "sharegpt_pairs"
    for row in rows:
        found = to_preference(row, "sharegpt_pairs", {})
        assert [m.content for m in found.prompt.messages] == [turn["value"] for turn in row["conversations"]]
        assert (found.chosen.content, found.rejected.content) == (row["chosen"]["value"], row["rejected"]["value"])
