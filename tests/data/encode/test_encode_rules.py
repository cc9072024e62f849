"""What `data.reasoning`, `data.train_reasoning`, `data.tools` and `train_on=everything` make of one row, by value."""

from dataclasses import replace

import pytest

from alignkit.choices import ReasoningForm, ToolsForm, TrainOn
from alignkit.config import TemplateConfig
from alignkit.data.encode.masking import EncodeRules, RowRefused, encode
from alignkit.data.encode.reasoning import DROPPED
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.conversation import Conversation, Message
from families import CONVERSATIONS, family_tokenizer

THOUGHTFUL = Conversation((Message("user", "Why?"), Message("assistant", "So.", reasoning="Hm, hm.")))
TURNS = Conversation(
    (Message("user", "amber"), Message("assistant", "birch"), Message("user", "cedar"), Message("assistant", "daisy"))
)


def trained(template: str, conversation: Conversation, rules: EncodeRules) -> list[str]:
    tokenizer = family_tokenizer(template)
    parts = encode(conversation, load_template(TemplateConfig(name="native"), tokenizer), tokenizer, rules)
    return [str(tokenizer.decode([label for label in part.labels if label != -100])) for part in parts]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("qwen3", "So.<|im_end|>"),
        ("qwen3_5_think", "So.<|im_end|>"),
        ("gemma4_v5", "So.<turn|>"),
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>So.<|return|>"),
    ],
)
def test_masked_reasoning_takes_its_tags_along(template: str, expected: str) -> None:
    assert trained(template, THOUGHTFUL, EncodeRules(train_reasoning=False)) == [expected]
    assert "Hm, hm." in trained(template, THOUGHTFUL, EncodeRules())[0]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("qwen2_5", "<think>\nHm, hm.\n</think>\n\nSo.<|im_end|>"),
        ("deepseekv3", "Hm, hm.\n</think>\n\nSo.<｜end▁of▁sentence｜>"),  # the prompt has opened the thought
    ],
)
def test_inline_reasoning_stands_before_the_words(template: str, expected: str) -> None:
    assert trained(template, THOUGHTFUL, EncodeRules(reasoning=ReasoningForm.inline)) == [expected]
    with pytest.raises(RowRefused, match=r"no place for reasoning: data\.reasoning=inline writes it before"):
        trained(template, THOUGHTFUL, EncodeRules())


def test_dropped_reasoning_is_counted_however_it_was_spelled() -> None:
    rules = EncodeRules(reasoning=ReasoningForm.drop)
    typed = replace(
        THOUGHTFUL, messages=(Message("user", "Why?"), Message("assistant", "<think>\nHm.\n</think>\n\nSo."))
    )
    tokenizer = family_tokenizer("qwen2_5")
    template = load_template(TemplateConfig(name="native"), tokenizer)
    for conversation in (THOUGHTFUL, typed):
        (part,) = encode(conversation, template, tokenizer, rules)
        assert part.notes == (DROPPED,)
        assert trained("qwen2_5", conversation, rules) == ["So.<|im_end|>"]


def test_everything_trains_each_text_once_also_where_history_is_rewritten() -> None:
    first, last = trained("qwen3", TURNS, EncodeRules(TrainOn.everything))
    assert first == "<think>\n\n</think>\n\nbirch<|im_end|>"
    assert [last.count(word) for word in ("amber", "birch", "cedar", "daisy")] == [1, 0, 1, 1]


def test_tools_go_as_text_into_a_template_without_a_place_for_them() -> None:
    conversation = CONVERSATIONS["a call"]
    with pytest.raises(
        RowRefused,
        match=r"refuses tool messages: it leaves them out; a run with data\.tools=system writes them as text$",
    ):
        trained("phi3", conversation, EncodeRules())
    (said,) = trained("phi3", conversation, EncodeRules(tools=ToolsForm.system))
    assert said.startswith("Call: {")
    assert said.count("<|end|>") == 2
