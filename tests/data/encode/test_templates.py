"""What a template renders, by value; that it is transformers' own text; and every mistake a template can have."""

import copy
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignkit.config import TemplateConfig
from alignkit.data.encode.masking import EncodeRules, encode
from alignkit.data.encode.templates import SHIPPED, RowRefused, Template, load_template
from alignkit.data.encode.trained_turns import trained_turn
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import TemplateError
from families import CONVERSATIONS, family_tokenizer

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALL_TEXT = '[{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]'
CHAT = [
    Message("system", "Be brief."),
    Message("user", "1+1?", input="numbers"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "2"),
    Message("assistant", "It is 2."),
    Message("user", "Thanks."),
]


class Segment(NamedTuple):
    """A stretch of a rendered conversation; `message` is the assistant message that says it."""

    text: str
    message: int | None = None


def text_of(template: Template, messages: Sequence[Message], *, prompt: bool = False) -> str:
    return template.text(Conversation(tuple(messages)), add_generation_prompt=prompt)


def cut(template: Template, messages: Sequence[Message], *, prompt: bool = False) -> list[Segment]:
    """Cut a text around every response that stands in it as it was trained."""
    text, done, segments = text_of(template, messages, prompt=prompt), 0, []
    for index in [i for i, message in enumerate(messages) if message.role == "assistant"]:
        turn = trained_turn(template, Conversation(tuple(messages)), index)
        if text.startswith(turn.prompt + turn.response):
            segments += [Segment(turn.prompt[done:]), Segment(turn.response, index)]
            done = len(turn.prompt + turn.response)
    return [*segments, Segment(text[done:])] if text[done:] else segments


def load(name: str, tokenizer: PreTrainedTokenizerFast) -> Template:
    return load_template(TemplateConfig(name=name), tokenizer)


def load_file(text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Template:
    path = tmp_path / "my.jinja"
    path.write_text(text, encoding="utf-8")
    return load_template(TemplateConfig(file=str(path)), tokenizer)


def with_native(jinja: str, tokenizer: PreTrainedTokenizerFast, *special: str) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.all_special_tokens, *special]})
    tokenizer.chat_template = jinja
    return tokenizer


RENDERED = {
    "instruction": [
        Segment("Be brief.\n\n### Instruction:\n1+1?\n\n### Input:\nnumbers\n\n### Response:\n"),
        Segment(f"{CALL_TEXT}<|eos|>", 2),
        Segment("\n\n### Tool:\n2\n\n### Response:\n"),
        Segment("It is 2.<|eos|>", 4),
        Segment("\n\n### Instruction:\nThanks.\n\n### Response:\n"),
    ],
    "user_bot": [
        Segment("Be brief.\n\n### User:\n1+1?\n\nnumbers\n\n### Bot:\n"),
        Segment(f"{CALL_TEXT}<|eos|>", 2),
        Segment("\n\n### Tool:\n2\n\n### Bot:\n"),
        Segment("It is 2.<|eos|>", 4),
        Segment("\n\n### User:\nThanks.\n\n### Bot:\n"),
    ],
    "question_answer": [
        Segment("Be brief.\n\n### Question:\n1+1?\n\nnumbers\n\n### Answer:\n"),
        Segment(f"{CALL_TEXT}<|eos|>", 2),
        Segment("\n\n### Tool:\n2\n\n### Answer:\n"),
        Segment("It is 2.<|eos|>", 4),
        Segment("\n\n### Question:\nThanks.\n\n### Answer:\n"),
    ],
    "human_assistant": [
        Segment("Be brief.\n\nHuman: 1+1?\n\nnumbers\n\nAssistant:"),
        Segment(f" {CALL_TEXT}<|eos|>", 2),
        Segment("\n\nTool: 2\n\nAssistant:"),
        Segment(" It is 2.<|eos|>", 4),
        Segment("\n\nHuman: Thanks.\n\nAssistant:"),
    ],
    "chatml": [
        Segment(
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\n1+1?\n\nnumbers<|im_end|>\n<|im_start|>assistant\n"
        ),
        Segment(f"{CALL_TEXT}<|im_end|>", 2),
        Segment("\n<|im_start|>tool\n2<|im_end|>\n<|im_start|>assistant\n"),
        Segment("It is 2.<|im_end|>", 4),
        Segment("\n<|im_start|>user\nThanks.<|im_end|>\n<|im_start|>assistant\n"),
    ],
    "plain": [
        Segment("Be brief.\n\n1+1?\n\nnumbers"),
        Segment(f"{CALL_TEXT}<|eos|>", 2),
        Segment("\n\n2"),
        Segment("It is 2.<|eos|>", 4),
        Segment("\n\nThanks."),
    ],
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_template_renders_every_role(name: str, byte: PreTrainedTokenizerFast) -> None:
    assert cut(load(name, byte), CHAT, prompt=True) == RENDERED[name]


def test_what_each_shipped_template_begins_and_ends_with(byte: PreTrainedTokenizerFast) -> None:
    templates = {name: load(name, byte) for name in SHIPPED}
    assert {
        name: (t.end_token, t.end_id, t.response_lead, t.prompt_suffix, t.uses_input) for name, t in templates.items()
    } == {
        "instruction": ("<|eos|>", 258, "", "\n\n### Response:\n", True),
        "user_bot": ("<|eos|>", 258, "", "\n\n### Bot:\n", False),
        "question_answer": ("<|eos|>", 258, "", "\n\n### Answer:\n", False),
        "human_assistant": ("<|eos|>", 258, " ", "\n\nAssistant:", False),
        "chatml": ("<|im_end|>", 260, "", "<|im_end|>\n<|im_start|>assistant\n", False),
        "plain": ("<|eos|>", 258, "", "", False),
    }
    assert all(
        template.refused == {"reasoning": "it has no place for it", "tools": "it leaves them out"}
        for template in templates.values()
    )


def test_chatml_ends_in_eos_where_its_own_end_is_not_a_token(gpt2: PreTrainedTokenizerFast) -> None:
    template = load("chatml", gpt2)
    assert (template.end_token, template.end_id) == ("<|endoftext|>", gpt2.eos_token_id)
    assert text_of(template, [Message("user", "a"), Message("assistant", "b")]) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|endoftext|>\n"
    )


def test_bos_is_written_only_where_the_tokenizer_adds_one(
    llama: PreTrainedTokenizerFast, byte: PreTrainedTokenizerFast
) -> None:
    assert text_of(load("user_bot", llama), [Message("user", "a")]) == "<s>### User:\na"
    assert text_of(load("user_bot", byte), [Message("user", "a")]) == "### User:\na"


@pytest.mark.parametrize("name", [*SHIPPED, "native"])
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(st.text(), min_size=1, max_size=4), system=st.none() | st.text(), prompt=st.booleans())
def test_the_text_is_the_one_transformers_renders(
    name: str, contents: list[str], system: str | None, prompt: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    if name == "native" and not tokenizer.chat_template:
        pytest.skip("template=native is for tokenizers with a chat template, and this one has none")
    template = load(name, tokenizer)
    messages = [] if system is None else [Message("system", system)]
    messages += [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    expected = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        chat_template=template.jinja,
        add_generation_prompt=prompt,
        tokenize=False,
    )
    assert text_of(template, messages, prompt=prompt) == expected


@pytest.mark.parametrize("name", SHIPPED)
def test_a_saved_tokenizer_carries_the_template(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    template = load(name, tokenizer)
    before, tokenizer.chat_template = tokenizer.chat_template, template.jinja
    tokenizer.save_pretrained(tmp_path)
    tokenizer.chat_template = before
    again = load("native", AutoTokenizer.from_pretrained(tmp_path))
    assert cut(again, CHAT) == cut(template, CHAT)
    for field in ("jinja", "end_token", "end_id", "response_lead", "prompt_suffix", "uses_input", "refused"):
        assert getattr(again, field) == getattr(template, field)


UNMARKED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TWO_TURNS = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]


def test_a_native_template_without_markers_is_cut_after_its_end_token(byte: PreTrainedTokenizerFast) -> None:
    assert cut(load("native", with_native(UNMARKED, byte)), TWO_TURNS) == [
        Segment("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),
        Segment("b<|im_end|>", 1),
        Segment("\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"),
        Segment("d<|im_end|>", 3),
        Segment("\n"),
    ]


SPECIAL = {
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "phi3": ("<|user|>", "<|assistant|>", "<|end|>"),
    "qwen3_instruct_2507": (),
    "cohere": ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
}


def of_trl(name: str, tokenizer: PreTrainedTokenizerFast, *special: str) -> Template:
    """TRL keeps real models' templates, as they are and with markers set by hand."""
    text = files("trl").joinpath("chat_templates", f"{name}.jinja").read_text("utf-8")
    return load("native", with_native(text, tokenizer, *special))


@pytest.mark.parametrize("model", SPECIAL)
def test_turns_are_found_where_markers_were_set_by_hand(model: str, byte: PreTrainedTokenizerFast) -> None:
    found, by_hand = (of_trl(name, byte, *SPECIAL[model]) for name in (model, f"{model}_training"))
    chat = [*TWO_TURNS, Message("user", "e"), Message("assistant", " f\n")]
    assert [s for s in cut(found, chat) if s.message] == [s for s in cut(by_hand, chat) if s.message]
    assert found.end_token == by_hand.end_token


def test_a_template_that_rewrites_history_marks_the_last_turn_alone(byte: PreTrainedTokenizerFast) -> None:
    assert cut(of_trl("qwen3", byte), TWO_TURNS) == [
        Segment(
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
            "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
        ),
        Segment("<think>\n\n</think>\n\nd<|im_end|>", 3),
        Segment("\n"),
    ]


def test_roles_a_template_refuses_or_leaves_out_are_named(byte: PreTrainedTokenizerFast) -> None:
    with_system = [Message("system", "s"), Message("user", "u")]
    with pytest.raises(RowRefused, match=r"^template native refuses system messages: System role not supported$"):
        of_trl("gemma", byte, "<start_of_turn>", "<end_of_turn>").check(Conversation(tuple(with_system)))
    silent = UNMARKED.replace("%}{{", "%}{% if m.role == 'system' %}{% continue %}{% endif %}{{", 1)
    template = load("native", with_native(silent, byte))
    with pytest.raises(RowRefused, match=r"^template native refuses system messages: it leaves them out$"):
        template.check(Conversation(tuple(with_system)))
    with pytest.raises(
        RowRefused, match=r"^template native refuses tool calls: it leaves them out; a run with data\.tools=system"
    ):
        template.check(Conversation(tuple(CHAT[1:3])))


def test_an_argument_of_a_row_that_the_template_never_reads_is_refused_unless_it_is_empty(
    byte: PreTrainedTokenizerFast,
) -> None:
    template = load("native", with_native(UNMARKED, byte))
    template.check(
        Conversation((Message("user", "u"),), template_kwargs={"documents": [], "persona": "", "xml_tools": None})
    )
    with pytest.raises(RowRefused, match=r"^template native never reads brief, persona$"):
        template.check(
            Conversation((Message("user", "u"),), template_kwargs={"persona": "p", "brief": False, "documents": []})
        )


MARKED = """{%- for m in messages %}{{ m.role + ': ' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + end }}{% endgeneration %}{% else %}{{ m.content }}
{%- endif %}{{- '|' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""


def test_a_file_of_ones_own(tmp_path: Path, byte: PreTrainedTokenizerFast) -> None:
    template = load_file(MARKED, tmp_path, byte)
    assert template.name == "my.jinja"
    assert cut(template, [Message("user", "a"), Message("assistant", "b")]) == [
        Segment("user: a|assistant: "),
        Segment("b<|eos|>", 1),
        Segment("|"),
    ]


@pytest.mark.parametrize("template", ["qwen3", "qwen3_training", "gptoss", "glm4moe", "deepseekv3"])
def test_a_file_is_read_as_the_same_text_in_the_tokenizer_is(template: str, tmp_path: Path) -> None:
    tokenizer = family_tokenizer(template)
    own, file = load("native", tokenizer), load_file(str(tokenizer.chat_template), tmp_path, tokenizer)
    assert (file.stops, file.ends, file.thought, file.refused) == (own.stops, own.ends, own.thought, own.refused)
    for kind in ("several turns", "reasoning in every turn", "several users with tools"):
        said = [_parts(CONVERSATIONS[kind], template, tokenizer) for template in (own, file)]
        assert said[0] == said[1]


def _parts(conversation: Conversation, template: Template, tokenizer: PreTrainedTokenizerFast) -> Any:
    try:
        return [(part.input_ids, part.labels) for part in encode(conversation, template, tokenizer, EncodeRules())]
    except RowRefused as refusal:
        return str(refusal).replace(template.name, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ messages[0].content }}", "it leaves out what the user or the assistant says"),
        (MARKED + "\n\n{% if %}", "my.jinja:5: Expected an expression, got 'end of statement block'"),
        (
            MARKED.replace("{{ 'assistant: ' }}", "{{ 'bot: ' }}"),
            "the generation prompt is not the beginning of the trained text: from character 20 on inference feeds "
            "'user: question-4711|bot: ' where training has 'user: question-4711|assistant: answer-4711<|eos|>|'",
        ),
        (
            MARKED.replace("+ end", ""),
            "the assistant's turn goes on with '', which holds no token that could end it; "
            "in a template of yours write {{ end }}",
        ),
        (MARKED.replace("m.content + end", "end"), "it leaves out what the user or the assistant says"),
        (MARKED.replace("+ end", "+ end + end"), "it writes <|eos|> twice in a row"),
        (MARKED.replace("{{- '|' }}", "{{- end if m.role == 'assistant' }}"), "it writes <|eos|> twice in a row"),
        ("{{ raise_exception('no') }}" + MARKED, "my.jinja: no"),
        ("{{ messages[0].nothing.at_all }}" + MARKED, "my.jinja: 'dict object' has no attribute 'nothing'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_told(text: str, message: str, tmp_path: Path, byte: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError) as error:
        load_file(text, tmp_path, byte)
    assert str(error.value).startswith(f"template.file={tmp_path / 'my.jinja'}:")
    assert message in str(error.value)


def test_a_bos_by_hand_and_by_default_is_doubled(tmp_path: Path, llama: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match="it writes <s> twice in a row"):
        load_file("{{ bos_token }}{{ bos }}" + MARKED, tmp_path, llama)


def test_files_that_cannot_be_read(tmp_path: Path, byte: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match=r"^template\.file=none\.jinja: no such file$"):
        load_template(TemplateConfig(file="none.jinja"), byte)
    (tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(TemplateError, match=r"not UTF-8 text .*at byte 0"):
        load_template(TemplateConfig(file=str(tmp_path / "latin.jinja")), byte)


def test_unknown_names_and_missing_native_templates(byte: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError) as error:
        load("instructions", byte)
    assert str(error.value) == (
        "template.name=instructions: no such template; did you mean 'instruction'?; "
        "there are chatml, human_assistant, instruction, plain, question_answer, user_bot and native"
    )
    with pytest.raises(
        TemplateError, match="native: the tokenizer has no chat template of its own: choose one of chatml"
    ):
        load("native", byte)


def test_a_tokenizer_without_an_end_token(llama: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(llama)
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="a turn ends in the tokenizer's eos token, and it has none"):
        load("instruction", tokenizer)


def test_a_native_template_that_eats_memory_is_refused(byte: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TemplateError, match=r"^template\.name=native: the chat template asks for more than 2 GiB"):
        load("native", with_native("{{ 'a' * 50000000000 }}", byte))
