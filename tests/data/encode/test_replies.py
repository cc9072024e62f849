"""A reply is read back as the template writes it: every template of TRL, whole and character by character."""

from typing import Any

import pytest
from rich.console import Console

from alignkit.choices import ControlTokens, ReasoningForm, ToolsForm, TrainOn
from alignkit.config import ModelConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, RowRefused, encode
from alignkit.data.encode.replies import Piece, ReplyReader, reply_spec
from alignkit.data.encode.templates import load_template
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.evaluate.served_model import ServedModel
from alignkit.evaluate.shown_reply import ShownReply
from families import TEXT_TEMPLATES, TOOLS, calls, family_tokenizer, says, user

# The replies of these have no form that is known: they are shown as they are written.
AS_WRITTEN = {"muse_glimmer", "muse_glimmer_training"}
# Of these families, but for the templates named, there are no calls and no reasoning to read.
PLAIN = ("cohere", "gemma", "llama3", "phi3", "lfm2")
CALLING = {name for name in TEXT_TEMPLATES if name.startswith(("gemma4", "llama3_1", "llama3_2", "lfm2_2", "lfm2_v2"))}


def served(template: str, *forms: Any) -> ServedModel:
    tokenizer = family_tokenizer(template)
    rules = EncodeRules(TrainOn.last_turn, ControlTokens.neutralise, *forms)
    return ServedModel(ModelConfig(template), tokenizer, load_template(TemplateConfig(), tokenizer), rules)


def read(policy: ServedModel, spec: Any, said: Message, *, chunk: int) -> tuple[Message, list[Piece]] | None:
    """What is read of a reply as it is trained, so many characters at a time; None where it is refused."""
    try:
        asked = Conversation((user("amber"), said), tools=TOOLS if said.tool_calls else ())
        (part,) = encode(asked, policy.template, policy.tokenizer, policy.rules)
    except RowRefused:
        return None
    start, stop = part.responses[-1]
    reader = ReplyReader(spec, policy.decode(part.input_ids[:start]), TOOLS)
    text = policy.decode(part.input_ids[start:stop])
    pieces = [piece for at in range(0, len(text), chunk) for piece in reader.feed(text[at : at + chunk])]
    message, rest = reader.finish()
    return message, [*pieces, *rest]


def joined(pieces: list[Piece], kind: str) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == kind).strip()


def check(policy: ServedModel) -> int:
    """Compare what is read with what was said; the number of turns that the template writes."""
    num_read, spec = 0, reply_spec(policy.reply_form)
    turns = [says("birch"), says("birch", thought="hazel"), calls("Dover"), calls("Dover", thought="hazel")]
    for said in [*turns, calls("Dover", "Calais")]:
        for chunk in (1, 10_000):
            found = read(policy, spec, said, chunk=chunk)
            if found is None:
                continue
            message, pieces = found
            num_read += chunk == 1
            asked = [call["function"] for call in said.tool_calls]
            assert [call["function"] for call in message.tool_calls] == asked
            assert (message.content.strip(), message.reasoning.strip()) == (said.content, said.reasoning)
            assert (joined(pieces, "words"), joined(pieces, "reasoning")) == (said.content, said.reasoning)
            shown = [f'get_weather {{"city": "{call["arguments"]["city"]}"}}' for call in asked]
            assert [piece.text for piece in pieces if piece.kind == "call"] == shown
    return num_read


@pytest.mark.parametrize("template", sorted({*TEXT_TEMPLATES} - AS_WRITTEN))
def test_what_a_template_writes_is_read_back(template: str) -> None:
    policy = served(template)
    if template.startswith(PLAIN) and template not in CALLING:
        assert reply_spec(policy.reply_form) is None
    else:
        assert check(policy) >= 1


@pytest.mark.parametrize(
    "template", ["qwen2_5", "qwen3", "llama3", "deepseekv3", "nemotron_3_nano", "gemma3", "phi3_5"]
)
def test_tools_and_reasoning_as_text_are_read_back(template: str) -> None:
    assert check(served(template, ToolsForm.system, ReasoningForm.inline)) == 5


def test_what_cannot_be_read_is_words() -> None:
    policy = served("qwen3")
    for text in ('<tool_call>\n{"name": "get_weather", "argu', "<tool_call>\nno JSON\n</tool_call><|im_end|>"):
        reader = ReplyReader(reply_spec(policy.reply_form), "", TOOLS)
        pieces = reader.feed(text)
        message, rest = reader.finish()
        assert message == Message("assistant", text)
        assert joined([*pieces, *rest], "words") == text


def test_a_tag_in_the_words_of_a_template_without_calls_is_words(byte: Any) -> None:
    policy = ServedModel(ModelConfig("it"), byte, load_template(TemplateConfig("chatml"), byte))
    assert reply_spec(policy.reply_form) is None


def test_an_argument_is_of_the_type_that_its_tool_says() -> None:
    parameters = {"type": "object", "properties": {"days": {"type": "integer", "description": "How many."}}}
    tool = {"type": "function", "function": {"name": "ahead", "description": "d", "parameters": parameters}}
    reader = ReplyReader(reply_spec(served("qwen3_6").reply_form), "<think>\n\n</think>\n\n", (tool,))
    reader.feed("<tool_call>\n<function=ahead>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call><|im_end|>")
    assert reader.finish()[0].tool_calls[0]["function"] == {"name": "ahead", "arguments": {"days": 3}}


@pytest.mark.parametrize(("hidden", "first"), [(False, "Let me see.\nWell.\n"), (True, "Well.\n")])
def test_a_reply_on_the_terminal(hidden: bool, first: str) -> None:
    console = Console(record=True, width=80)
    shown = ShownReply(console, hide_reasoning=hidden)
    pieces = [("reasoning", "Let me"), ("reasoning", " see.\n"), ("words", "\nWell.\n"), ("words", "\n")]
    for kind, text in [*pieces, ("call", "add {}"), ("call", "add {1}")]:
        shown.add(Piece(kind, text))
    assert console.export_text() == f"{first}→ add {{}}\n→ add {{1}}"
