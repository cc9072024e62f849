"""Every chat template of today on every kind of conversation: trained is what a server feeds and the model must say.

What is expected comes from `apply_chat_template` and from what is stated here, not from the code that is tested. P is
the prompt that a server renders before a turn, R what the model must say after it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alignkit.config import DataConfig, TemplateConfig
from alignkit.data.encode.masking import EncodeRules, Encoding, RowRefused, encode, encode_prompt
from alignkit.data.encode.templates import Template, load_template
from alignkit.data.rows.conversation import Conversation, Message
from families import CONVERSATIONS, TEXT_TEMPLATES, TOOLS, called, family_tokenizer, user
from served import served, stretches

RULES = EncodeRules.of(DataConfig())
WORDS = re.findall(
    r"\w+",
    "acorn amber birch cedar dahlia elder fennel ginger hazel indigo jasmine Dover Calais cloudy sunny welkin borough",
)

REASONED = {"reasoning in the last turn", "reasoning in every turn"}
REASONED_CALLS = {"reasoning with a call", "several users with tools and reasoning"}
CALLS = {kind for kind, conversation in CONVERSATIONS.items() if conversation.tools}

# What a refusal speaks of, the templates by their names without `_training`, and the kinds that are refused for it.
NO_TOOLS = "cohere cohere2 deepseek_r1_distill deepseekv3 gemma gemma3 llama3 phi3 phi3_5"
NO_REASONING = f"{NO_TOOLS} lfm2 lfm2_v2 llama3_1 llama3_2 qwen2_5 qwen3_instruct_2507"
NO_PLACE = "reasoning.*: data.reasoning=inline writes it before the answer, data.reasoning=drop leaves it out"
REFUSALS: list[tuple[str, str, set[str]]] = [
    ("System role not supported", "gemma", {"system message"}),
    ("must alternate|tool", NO_TOOLS, CALLS),
    ("call", "lfm2", CALLS),
    (NO_PLACE, NO_REASONING, REASONED | REASONED_CALLS),
    # Gemma 4 writes reasoning beside a call alone; in its v2 nowhere, in its v5 everywhere.
    (NO_PLACE, "gemma4 gemma4_v2 gemma4_v3 gemma4_v4", REASONED | {"several users with tools and reasoning"}),
    (NO_PLACE, "gemma4_v2", {"reasoning with a call"}),
    ("single tool-calls at once", "llama3_1 llama3_2", {"two calls at once"}),
    ("call", "gptoss", {"two calls at once"}),
]
# The prompt closes the thought, by `enable_thinking=false` or by the template's own default: reasoning has no place.
CLOSED_IF_FALSE = (
    "glm4moe qwen3 qwen3_5_nothink qwen3_5_think qwen3_6 qwen3_8 "
    "nemotron_3_nano nemotron_3_super nemotron_3_ultra nemotron_3_5_lightning"
)
CLOSED_BY_DEFAULT = "qwen3_5_nothink"

# What a turn ends in, which is what generation stops at.
ENDS = {
    "cohere": ["<|END_OF_TURN_TOKEN|>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "gemma": ["<end_of_turn>"],
    "gemma4": ["<turn|>", "<|tool_response>"],
    "gemma4_v2": ["<turn|>"],
    "glm4moe": ["<|user|>", "<|observation|>"],
    "gptoss": ["<|return|>", "<|call|>"],
    "lfm2": ["<|im_end|>"],
    "llama3": ["<|eot_id|>"],
    "muse": ["<|eot|>"],
    "nemotron": ["<|im_end|>"],
    "phi3": ["<|end|>"],
    "qwen": ["<|im_end|>"],
}
# Where a prompt opens a thought and the template's text has none: what it opens, and how the model closes it.
OPENED = {"deepseek": ("<think>\n", "\n</think>\n\n"), "gemma4_v5": ("<|channel>thought\n", "\n<channel|>")}

Cell = tuple[str, str, bool | None]
Turn = tuple[list[int], str]


def by_beginning(table: dict[str, Any], template: str) -> Any:
    return table[max((name for name in table if template.startswith(name)), key=len)]


def thinking_of(template: str) -> list[bool | None]:
    code = re.sub(r"(?s)\{#.*?#\}", "", family_tokenizer(template).chat_template)
    return [None, True, False] if "enable_thinking" in code else [None]


def cells_of(template: str) -> list[Cell]:
    return [(template, kind, thinking) for kind in CONVERSATIONS for thinking in thinking_of(template)]


def refusal_of(cell: Cell) -> str:
    """What the refusal of a cell must speak of; empty where the cell must be exact."""
    template, kind, thinking = cell
    name = template.removesuffix("_training")
    found = [words for words, names, kinds in REFUSALS if name in names.split() and kind in kinds]
    closed = {False: CLOSED_IF_FALSE, None: CLOSED_BY_DEFAULT}.get(thinking, "")
    if name in closed.split() and kind in REASONED | REASONED_CALLS:
        found.append("closes the thought")
    return "|".join(found)


def conversation_of(cell: Cell) -> Conversation:
    _, kind, thinking = cell
    return replace(CONVERSATIONS[kind], template_kwargs={} if thinking is None else {"enable_thinking": thinking})


def turns_of(template: str, conversation: Conversation) -> list[Turn]:
    """The ids of P and the text of R of every assistant turn."""
    tokenizer = family_tokenizer(template)
    turns = []
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":
            ids = served(tokenizer, conversation, index, add_generation_prompt=True)
            prompt = served(tokenizer, conversation, index, add_generation_prompt=True, tokenize=False)
            text = served(tokenizer, conversation, index + 1, tokenize=False)
            turns.append((ids, ended(template, said(template, prompt, text, message), message)))
    return turns


def said(template: str, prompt: str, text: str, message: Message) -> str:
    """What of the text of a conversation the model says after the prompt."""
    if text.startswith(prompt):
        return text[len(prompt) :]
    if template.startswith("nemotron"):  # the prompt's last line break is layout
        return text.removeprefix(prompt.rstrip())
    if template.startswith("gptoss"):  # an answer takes the reasoning before its call out of the history
        cue, words = "<|start|>assistant", text.index(message.reasoning or message.content)
        return text[text.rindex(cue, 0, words) + len(cue) :]
    opening, closing = by_beginning(OPENED, template)
    return closing + text.removeprefix(prompt.removesuffix(opening))


def ended(template: str, response: str, message: Message) -> str:
    ends = by_beginning(ENDS, template)
    stop = max((response.rindex(end) + len(end) for end in ends if end in response), default=None)
    if stop:
        return response[:stop]
    return response + ends[bool(message.tool_calls)]  # GLM's turns end where the next begins


def complaints(
    parts: Sequence[Encoding],
    conversation: Conversation,
    turns: list[Turn],
    tokenizer: PreTrainedTokenizerFast,
    stop_ids: Sequence[int],
) -> list[str]:
    """What is wrong with the parts of a row; nothing where they are exact."""
    wrong = []
    pairs = [(prompt, tokenizer.encode(response, add_special_tokens=False)) for prompt, response in turns]
    whole = [prompt + response for prompt, response in pairs]
    leaves = [a for k, a in enumerate(whole) if not any(prompt[: len(a)] == a for prompt, _ in pairs[k + 1 :])]
    if [part.input_ids for part in parts] != leaves:
        wrong.append(f"{len(parts)} parts are not the {len(leaves)} of P + R")
    trained = [
        (part.input_ids[:start], part.input_ids[start:stop]) for part in parts for start, stop in stretches(part)
    ]
    wrong += [
        f"turn {k} is trained {trained.count(pair)} times" for k, pair in enumerate(pairs) if trained.count(pair) != 1
    ]
    wrong += [f"trained is {tokenizer.decode(ids)!r}" for prompt, ids in trained if (prompt, ids) not in pairs]
    for part in parts:
        if [label for label in part.labels if label != -100] != [
            part.input_ids[at] for start, stop in stretches(part) for at in range(start, stop)
        ]:
            wrong.append("labels are other ids than the input's")
        if list(part.responses) != stretches(part):
            wrong.append(f"responses {part.responses} are not where there is loss")
    for _, ids in trained:
        if ids[-1] not in stop_ids or any(id in stop_ids for id in ids[:-1]):
            wrong.append(f"{tokenizer.decode(ids)!r} does not end in its one stop id")
    texts = "".join(tokenizer.decode(ids) for _, ids in trained)
    expected = Counter(word for message in conversation.messages for word in learnt(message))
    wrong += [f"{word} is trained {texts.count(word)} times" for word in WORDS if texts.count(word) != expected[word]]
    return wrong


def learnt(message: Message) -> list[str]:
    """The words of a message that carry loss."""
    if message.role != "assistant":
        return []
    text = f"{message.content} {message.reasoning} {[call['function']['arguments'] for call in message.tool_calls]}"
    return [word for word in WORDS if word in text]


@cache
def loaded(template: str) -> Template:
    return load_template(TemplateConfig(name="native"), family_tokenizer(template))


def outcome(cell: Cell, template: Template) -> tuple[str, str]:
    """What became of a cell: exact, refused or wrong; and why."""
    name, tokenizer, conversation = cell[0], family_tokenizer(cell[0]), conversation_of(cell)
    try:
        parts = encode(conversation, template, tokenizer, RULES)
    except RowRefused as refusal:
        words = refusal_of(cell)
        return ("refused" if words and re.search(words, str(refusal)) else "wrong", str(refusal))
    if refusal_of(cell):
        return "wrong", f"is not refused for: {refusal_of(cell)}"
    turns = turns_of(name, conversation)
    wrong = complaints(parts, conversation, turns, tokenizer, template.stop_ids)
    at = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    for index, (ids, _) in zip(at, turns, strict=True):
        prompt = replace(conversation, messages=conversation.messages[:index])
        if encode_prompt(prompt, template, tokenizer, RULES) != ids:
            wrong.append(f"the prompt before message {index} is not the server's")
    return ("wrong", "; ".join(wrong)) if wrong else ("exact", str(len(parts)))


@cache
def outcomes(name: str) -> dict[Cell, tuple[str, str]]:
    template = loaded(name)
    return {cell: outcome(cell, template) for cell in cells_of(name)}


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_each_cell_is_exact_or_refused_for_its_reason(name: str) -> None:
    assert {cell: why for cell, (what, why) in outcomes(name).items() if what == "wrong"} == {}


def test_of_all_cells_none_is_silently_wrong() -> None:
    counts = Counter(what for name in TEXT_TEMPLATES for what, _ in outcomes(name).values())
    assert counts == {"exact": 874, "refused": 325}


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_generation_stops_at_what_turns_end_in(name: str) -> None:
    tokens = family_tokenizer(name).convert_ids_to_tokens(list(loaded(name).stop_ids))
    assert sorted(tokens) == sorted(by_beginning(ENDS, name))


# How many parts a row has, where the template's arguments are its own defaults; "-" where it is refused.
KINDS = [
    "several turns",
    "reasoning in every turn",
    "a call",
    "two rounds of calls",
    "several users with tools",
    "reasoning with a call",
    "several users with tools and reasoning",
]
PARTS = {
    "cohere": "1 - - - - - -",
    "deepseek": "3 - - - - - -",
    "gemma": "1 - - - - - -",
    "gemma4": "1 - 1 1 1 1 -",
    "gemma4_v2": "1 - 1 1 1 - -",
    "gemma4_v5": "1 3 1 1 1 1 2",
    "glm4moe": "1 3 1 1 1 1 2",
    "gptoss": "3 3 1 1 2 1 2",
    "lfm2": "1 - - - - - -",
    "lfm2_v2": "1 - 1 1 1 - -",
    "lfm2_2_5": "1 3 1 1 1 1 2",
    "llama3": "1 - - - - - -",
    "llama3_1": "1 - 1 1 1 - -",
    "llama3_2": "1 - 1 1 1 - -",
    "muse": "1 1 1 1 1 1 1",
    "nemotron": "3 3 2 3 4 1 2",
    "phi3": "1 - - - - - -",
    "qwen2_5": "1 - 1 1 1 - -",
    "qwen3": "3 3 2 3 4 1 2",
    "qwen3_training": "1 1 1 1 1 1 1",
    "qwen3_instruct_2507": "1 - 1 1 1 - -",
    "qwen3_5_nothink": "3 - 1 1 2 - -",
    "qwen3_5_nothink_training": "1 - 1 1 1 - -",
    # The prompt ends in a newline and an unreasoned answer begins with one: in the history the two are one token.
    "qwen3_5_think": "3 3 2 3 4 1 2",
    "qwen3_5_think_training": "3 1 2 3 4 1 1",
    "qwen3_6": "3 3 2 3 4 1 2",
    "qwen3_6_training": "3 1 2 3 4 1 1",
    "qwen3_8": "3 1 2 3 4 1 1",
}


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_a_row_has_the_fewest_parts(name: str) -> None:
    found = [outcomes(name)[name, kind, None] for kind in KINDS]
    assert " ".join(parts if what == "exact" else "-" for what, parts in found) == by_beginning(PARTS, name)


CALL_JSON = '{"name": "get_weather", "arguments": {"city": "Dover"}}'
CALL_XML = "<tool_call>\n<function=get_weather>\n<parameter=city>\nDover\n</parameter>\n</function>\n</tool_call>"
GEMMA_CALL = '<|tool_call>call:get_weather{city:<|"|>Dover<|"|>}<tool_call|><|tool_response>'
GLM_CALL = (
    "\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Dover</arg_value>\n</tool_call><|observation|>"
)
GPT_CALL = ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Dover"}<|call|>'
LFM_CALL = "<|tool_call_start|>[get_weather(city='Dover')]<|tool_call_end|><|im_end|>"
RESPONSES: list[tuple[str, str, bool | None, list[str]]] = [
    ("cohere2", "one turn", None, ["It is birch.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"]),
    ("deepseekv3", "one turn", None, ["\n</think>\n\nIt is birch.<｜end▁of▁sentence｜>"]),
    ("gemma", "one turn", None, ["It is birch.<end_of_turn>"]),
    ("gemma4", "a call", None, [GEMMA_CALL, "It is birch.<turn|>"]),
    ("gemma4_v5", "a call", True, [GEMMA_CALL, "\n<channel|>It is birch.<turn|>"]),
    (
        "gemma4_v5",
        "reasoning with a call",
        None,
        [f"<|channel>thought\nThey want hazel.\n<channel|>{GEMMA_CALL}", "It is birch.<turn|>"],
    ),
    (
        "glm4moe",
        "reasoning with a call",
        None,
        [f"\n<think>They want hazel.</think>{GLM_CALL}", "\n<think></think>\nIt is birch.<|user|>"],
    ),
    ("glm4moe", "a call", False, [GLM_CALL, "\nIt is birch.<|user|>"]),
    (
        "gptoss",
        "reasoning with a call",
        None,
        [
            f"<|channel|>analysis<|message|>They want hazel.<|end|><|start|>assistant{GPT_CALL}",
            "<|channel|>final<|message|>It is birch.<|return|>",
        ],
    ),
    ("gptoss", "a call", None, [GPT_CALL, "<|channel|>final<|message|>It is birch.<|return|>"]),
    (
        "lfm2_2_5",
        "reasoning with a call",
        None,
        [f"<think>They want hazel.</think>{LFM_CALL}", "It is birch.<|im_end|>"],
    ),
    (
        "llama3_2",
        "a call",
        None,
        ['{"name": "get_weather", "parameters": {"city": "Dover"}}<|eot_id|>', "It is birch.<|eot_id|>"],
    ),
    ("muse_glimmer", "one turn", None, [" to=user<|message|>It is birch.<|eot|>"]),
    (
        "nemotron_3_nano",
        "reasoning with a call",
        None,
        [f"They want hazel.\n</think>\n{CALL_XML}\n<|im_end|>", "</think>It is birch.<|im_end|>"],
    ),
    ("nemotron_3_nano", "a call", False, [f"\n{CALL_XML}\n<|im_end|>", "It is birch.<|im_end|>"]),
    ("phi3_5", "one turn", None, ["It is birch.<|end|>"]),
    (
        "qwen2_5",
        "a call",
        None,
        [f"<tool_call>\n{CALL_JSON}\n</tool_call><|im_end|>", "It is birch.<|im_end|>"],
    ),
    (
        "qwen3",
        "reasoning with a call",
        None,
        [
            f"<think>\nThey want hazel.\n</think>\n\n<tool_call>\n{CALL_JSON}\n</tool_call><|im_end|>",
            "<think>\n\n</think>\n\nIt is birch.<|im_end|>",
        ],
    ),
    (
        "qwen3_5_think",
        "reasoning with a call",
        None,
        [f"They want hazel.\n</think>\n\n{CALL_XML}<|im_end|>", "\n</think>\n\nIt is birch.<|im_end|>"],
    ),
    ("qwen3_5_nothink", "a call", None, [f"{CALL_XML}<|im_end|>", "It is birch.<|im_end|>"]),
]


@pytest.mark.parametrize(("name", "kind", "thinking", "responses"), RESPONSES)
def test_what_the_model_must_say(name: str, kind: str, thinking: bool | None, responses: list[str]) -> None:
    cell, tokenizer = (name, kind, thinking), family_tokenizer(name)
    parts = encode(conversation_of(cell), loaded(name), tokenizer, RULES)
    trained = [part.input_ids[start:stop] for part in parts for start, stop in stretches(part)]
    assert [tokenizer.decode(ids) for ids in trained] == responses


@pytest.mark.parametrize("name", [name for name in TEXT_TEMPLATES if not refusal_of((name, "a call", None))])
@pytest.mark.parametrize("city", ["L'Aquila", 'the "Dover"', "both ' and \"", "two\nlines", "back\\slash", "Orléans"])
def test_an_argument_is_found_however_the_template_escapes_it(name: str, city: str) -> None:
    asked = Conversation((user("amber"), Message("assistant", "", tool_calls=(called(city),))), tools=TOOLS)
    assert len(encode(asked, loaded(name), family_tokenizer(name), RULES)) == 1


def by_hand(turns: list[Turn], tokenizer: PreTrainedTokenizerFast) -> list[Encoding]:
    """A part of each turn."""
    pairs = [(prompt, tokenizer.encode(response, add_special_tokens=False)) for prompt, response in turns]
    return [
        Encoding([*prompt, *said], [-100] * len(prompt) + said, ((len(prompt), len(prompt) + len(said)),))
        for prompt, said in pairs
    ]


FAULTS = {
    "a part is missing": lambda parts: parts[1:],
    "a part is there twice": lambda parts: [*parts, parts[0]],
    "a user's token is trained": lambda parts: [
        replace(parts[0], labels=[parts[0].input_ids[0], *parts[0].labels[1:]])
    ],
    "the end is not trained": lambda parts: [replace(part, labels=[*part.labels[:-1], -100]) for part in parts],
    "the end is left out": lambda parts: [
        replace(part, input_ids=part.input_ids[:-1], labels=part.labels[:-1]) for part in parts
    ],
    "the last label is another id": lambda parts: [replace(part, labels=[*part.labels[:-1], 0]) for part in parts],
    "another prompt": lambda parts: [
        replace(part, input_ids=part.input_ids[1:], labels=part.labels[1:]) for part in parts
    ],
    "nothing is trained": lambda parts: [replace(part, labels=[-100] * len(part.labels)) for part in parts],
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_table_sees_a_fault(fault: str | None) -> None:
    tokenizer, conversation = family_tokenizer("qwen3"), CONVERSATIONS["several turns"]
    turns = turns_of("qwen3", conversation)
    parts = by_hand(turns, tokenizer)
    parts = FAULTS[fault](parts) if fault else parts
    assert bool(complaints(parts, conversation, turns, tokenizer, [tokenizer.eos_token_id])) == (fault is not None)
