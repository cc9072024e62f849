"""Rows as prompts: responses left off, plain text cut to a drawn length, every row accounted for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.choices import Overlength, TrainOn
from alignkit.config import PromptDataConfig, PromptLength, TemplateConfig
from alignkit.data.encode.templates import load_template
from alignkit.data.sets.prompts import PromptData, check_prompts, load_prompts
from alignkit.errors import DataError
from alignkit.models.tiny import byte_tokenizer

Load = Callable[..., PromptData]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Prompts of rows that are written to `rows.jsonl`."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    template = load_template(TemplateConfig(name="question_answer"), tokenizer)

    def load(rows: list[dict[str, Any]], *, max_length: int = 200, seed: int = 0, **settings: Any) -> PromptData:
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = PromptDataConfig(path="rows.jsonl", **settings)
        assert check_prompts(data) == []
        return load_prompts(data, template, tokenizer, max_length=max_length, seed=seed)

    return load


def text(ids: list[int]) -> str:
    return str(byte_tokenizer().decode(ids))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?"},
        {"instruction": "Why?", "output": "So."},
        {"prompt": "Why?", "completion": "So."},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
    ],
)
def test_any_format_is_a_prompt_and_its_response_is_left_off(load: Load, row: dict[str, Any]) -> None:
    (prompt,) = load([row]).train
    assert text(prompt.ids) == "### Question:\nWhy?\n\n### Answer:\n"
    assert prompt.text == "Why?"
    assert prompt.source == "rows.jsonl:1"
    assert prompt.columns == row


def test_the_text_of_a_prompt_has_its_input(load: Load) -> None:
    (prompt,) = load([{"instruction": "Add.", "input": "1 1", "output": "2"}]).train
    assert prompt.text == "Add.\n1 1"


def test_plain_text_becomes_a_prompt_of_a_drawn_length(load: Load) -> None:
    rows = [{"text": f"review number {n} is long enough"} for n in range(60)]
    found = load(rows, prompt_length=PromptLength(2, 8))
    lengths = [len(prompt.ids) for prompt in found.train]
    assert set(lengths) == set(range(2, 9))
    for prompt, row in zip(found.train, rows, strict=True):
        assert prompt.conversation.plain
        assert row["text"].startswith(prompt.text)
        assert text(prompt.ids) == prompt.text == prompt.conversation.messages[0].content
    again = load(rows, prompt_length=PromptLength(2, 8))
    other = load(rows, prompt_length=PromptLength(2, 8), seed=1)
    assert [p.ids for p in again.train] == [p.ids for p in found.train] != [p.ids for p in other.train]


def test_a_text_that_is_too_short_is_dropped_and_counted(load: Load) -> None:
    found = load([{"text": "a"}, {"text": "abc"}], prompt_length=PromptLength(2, 2), max_dropped=0.5)
    assert [prompt.text for prompt in found.train] == ["ab"]
    assert found.ledger.counts() == {"train": {"dropped: too_short": 1, "kept": 1}}


def test_a_prompt_that_is_too_long_is_dropped_or_cut_from_the_left(load: Load) -> None:
    rows = [{"prompt": "Why?"}, {"prompt": "Because of what? " * 9}]
    found = load(rows, max_length=40, max_dropped=0.5)
    assert found.ledger.counts() == {"train": {"kept": 1, "dropped: too_long": 1}}
    found = load(rows, max_length=40, overlength=Overlength.keep_end)
    assert [len(prompt.ids) for prompt in found.train] == [32, 40]
    assert text(found.train[1].ids).endswith("of what? \n\n### Answer:\n")
    assert found.ledger.counts() == {"train": {"kept": 1, "truncated: cut_start": 1}}


def test_prompts_are_held_out_whole(load: Load) -> None:
    rows = [{"prompt": f"Why {n % 10}?"} for n in range(40)]
    found = load(rows, eval_fraction=0.3)
    assert not {p.text for p in found.train} & {p.text for p in found.held_out}
    assert len(found.held_out) == 12


def test_plain_text_needs_a_length_and_conversations_take_none(load: Load) -> None:
    with pytest.raises(DataError, match=r"plain text holds no prompt: data\.prompt_length="):
        load([{"text": "a"}])
    with pytest.raises(DataError, match=r"data\.prompt_length cuts plain text"):
        load([{"prompt": "a"}], prompt_length=PromptLength(1, 2))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"train_on": TrainOn.everything}, "data.train_on=everything has no effect here: prompts carry no loss"),
        (
            {"train_reasoning": False},
            "data.train_reasoning=false has no effect here: the loss scores whole responses; leave it out",
        ),
        ({"streaming": True}, "data.streaming=true has no effect here: prompts are read into memory; leave it out"),
        ({"num_proc": 2}, "data.num_proc=2 has no effect here"),
        ({"overlength": Overlength.keep_start}, "data.overlength=keep_start would cut off what every prompt ends with"),
        ({"prompt_length": PromptLength(2, None)}, "data.prompt_length needs both min and max"),
        ({"prompt_length": PromptLength(5, 2)}, "data.prompt_length.min=5 is more than data.prompt_length.max=2"),
        ({"eval_path": {"a": "rows.jsonl"}}, "data.eval_path: one set of held-out prompts is scored"),
    ],
)
def test_a_setting_without_effect_is_refused(
    settings: dict[str, Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "a"}\n')
    (found,) = check_prompts(PromptDataConfig(path="rows.jsonl", **settings))
    assert found.startswith(line)


def test_columns_that_are_no_part_of_a_prompt_are_listed_for_rewards(load: Load) -> None:
    assert load([{"prompt": "Why?", "answer": 3}]).ledger.table().splitlines()[-2:] == [
        "columns used: prompt",
        "columns that no prompt uses, which a reward may read: answer",
    ]
