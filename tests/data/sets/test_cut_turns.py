"""`keep_end` leaves out whole turns first: what stays is what a server would feed for a shorter conversation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.choices import Overlength, TrainOn
from alignkit.config import DataConfig, PromptDataConfig, TemplateConfig
from alignkit.data.encode.fewer_turns import longest_ends
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.sets.pairs import load_pairs
from alignkit.data.sets.prompts import load_prompts
from alignkit.data.sets.sft import load_sft
from alignkit.models.tiny import byte_tokenizer

BYTE = byte_tokenizer()
SYSTEM = {"role": "system", "content": "Rhyme."}
TURNS = [
    {"role": role, "content": f"{role[0]}{number} {'x' * 20}"} for number in (1, 2, 3) for role in ("user", "assistant")
]
# As Qwen3 does: a thought stays in the last answer alone, so that each answer is a part of its own.
REWRITING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% if loop.last %}<t></t>{% endif %}"
    "{% generation %}{{ m.content + end }}{% endgeneration %}"
    "{% else %}<{{ m.role[0] }}>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a><t></t>{% endif %}"
)

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    Path("rewriting.jinja").write_text(REWRITING)

    def load(
        row: dict[str, Any], max_length: int, *, loader: Load = load_sft, file: str | None = None, **rest: Any
    ) -> Any:
        Path("rows.jsonl").write_text(json.dumps(row) + "\n")
        section = (PromptDataConfig if loader is load_prompts else DataConfig)(
            "rows.jsonl", overlength=Overlength.keep_end, max_dropped=1, **rest
        )
        template = load_template(TemplateConfig("user_bot", file), BYTE)
        return loader(section, template, BYTE, max_length=max_length, seed=0)

    return load


def fates(data: Any) -> list[str]:
    return [row.label for row in data.ledger.rows]


def text(ids: list[int]) -> str:
    return BYTE.decode([i for i in ids if i < 256])


def test_whole_turns_go_and_the_system_message_stays(load: Load) -> None:
    whole = load({"messages": [SYSTEM, *TURNS]}, 500).train.dataset["input_ids"][0]
    fewer = load({"messages": [SYSTEM, *TURNS[2:]]}, 500).train.dataset["input_ids"][0]
    last = load({"messages": [SYSTEM, *TURNS[4:]]}, 500).train.dataset["input_ids"][0]
    assert (len(whole), len(fewer), len(last)) == (216, 146, 76)
    for max_length, kept in [(215, fewer), (146, fewer), (145, last), (76, last)]:
        data = load({"messages": [SYSTEM, *TURNS]}, max_length)
        assert (data.train.dataset["input_ids"][0], fates(data)) == (kept, ["truncated: cut_turns"])


def test_a_last_exchange_that_is_too_long_is_cut_inside_its_prompt(load: Load) -> None:
    data = load({"messages": [SYSTEM, *TURNS]}, 70)
    (ids,) = data.train.dataset["input_ids"]
    assert text(ids) == f"Rhyme.\n\n### User:\n{'x' * 17}\n\n### Bot:\na3 {'x' * 20}"
    assert fates(data) == ["truncated: cut_start"]


def test_each_part_of_a_row_keeps_as_much_as_fits(load: Load) -> None:
    whole = load({"messages": TURNS}, 500, file="rewriting.jinja").train.dataset
    assert [len(ids) for ids in whole["input_ids"]] == [60, 113, 166]
    data = load({"messages": TURNS}, 120, file="rewriting.jinja")
    assert [len(ids) for ids in data.train.dataset["input_ids"]] == [60, 113, 113]
    assert text(data.train.dataset["input_ids"][2]).startswith("<u>u2 ")
    trained = [text([i for i in labels if i >= 0]) for labels in data.train.dataset["labels"]]
    assert trained == [f"a{number} {'x' * 20}" for number in (1, 2, 3)]
    assert fates(data) == ["truncated: cut_turns, in 3 parts"]


def test_both_sides_of_a_pair_lose_the_same_turns(load: Load) -> None:
    pair = {"prompt": TURNS[:5], "chosen": "yes", "rejected": "a longer no"}
    fewer = {**pair, "prompt": TURNS[2:5]}
    expected = load(fewer, 500, loader=load_pairs).train.dataset
    longest = len(expected["prompt_ids"][0]) + len(expected["rejected_ids"][0])
    data = load(pair, longest, loader=load_pairs)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert data.train.dataset[column][:] == expected[column][:]
    assert fates(data) == ["truncated: cut_turns"]
    assert fates(load(pair, longest - 1, loader=load_pairs)) == ["truncated: cut_turns"]
    assert fates(load(pair, 50, loader=load_pairs)) == ["truncated: cut_start"]


def test_a_prompt_of_ppo_loses_whole_turns_and_its_reward_sees_the_rest(load: Load) -> None:
    (fewer,) = load({"messages": [SYSTEM, *TURNS[2:5]]}, 500, loader=load_prompts).train
    data = load({"messages": [SYSTEM, *TURNS[:5]]}, len(fewer.ids), loader=load_prompts)
    (prompt,) = data.train
    assert (prompt.ids, prompt.conversation) == (fewer.ids, fewer.conversation)
    assert fates(data) == ["truncated: cut_turns"]


def test_the_text_between_responses_that_are_trained_too_is_cut_with_its_turns(load: Load) -> None:
    data = load({"messages": TURNS}, 140, train_on=TrainOn.everything)
    (labels,) = data.train.dataset["labels"]
    assert text([i for i in labels if i >= 0]).startswith("## User:\nu2 ")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 200), st.booleans())
def test_the_longest_end_that_fits_is_kept(sizes: list[int], room: int, has_system: bool) -> None:
    turns = [Message(("user", "assistant")[i % 2], "x" * size) for i, size in enumerate(sizes)]
    lead = (Message("system", "s"),) if has_system else ()
    whole = Conversation((*lead, *turns))

    def length(conversation: Conversation) -> int:
        return sum(len(message.content) for message in conversation.messages)

    (kept,) = longest_ends([whole], lambda some: [length(one) <= room for one in some])
    starts = range(0, len(turns) - (len(turns) % 2 == 0), 2)
    ends = [Conversation((*lead, *turns[start:])) for start in starts]
    assert kept == next((end for end in ends if length(end) <= room), ends[-1])
