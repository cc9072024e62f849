"""Every key of a row and of a message that means something, and what becomes of it; all others are listed, not used."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias


class Use(StrEnum):
    """What becomes of a key that means something."""

    turns = "the turns"
    prompt = "the prompt"
    context = "the context below the prompt"
    response = "the response"
    thought = "what the assistant thought before the response, where it is text"
    text = "the whole text: nothing else of the row is read"
    chosen = "the preferred response"
    rejected = "the other response"
    margin = "by how much the preferred response is better"
    system = "the system message"
    history = "earlier turns: `[[user, assistant], …]`"
    tools = "the functions that the assistant may call"
    argument = "an argument of the template"
    arguments = "arguments of the template, by name"
    label = "in `sft`, rows labelled false are left out and counted"
    refused = "refused, where something is in it"

    role = "who speaks"
    content = "the words: text, or a list of parts of the types `text`, `reasoning` and `tool_call`"
    reasoning = "what the assistant thought before its words and calls"
    calls = "the functions that the assistant calls"
    call_id = "the call that a tool's result answers"
    name = "who speaks, or the tool that answers"
    flag = "whether the loss sees the message"


COLUMNS: Mapping[str, Use] = {
    "messages": Use.turns,
    "conversations": Use.turns,
    "instruction": Use.prompt,
    "prompt": Use.prompt,
    "input": Use.context,
    "output": Use.response,
    "completion": Use.response,
    "reasoning": Use.thought,
    "reasoning_content": Use.thought,
    "thinking": Use.thought,
    "text": Use.text,
    "chosen": Use.chosen,
    "rejected": Use.rejected,
    "margin": Use.margin,
    "system": Use.system,
    "system_prompt": Use.system,
    "history": Use.history,
    "tools": Use.tools,
    "functions": Use.tools,
    "documents": Use.argument,
    "tool_choice": Use.argument,
    "parallel_tool_calls": Use.argument,
    "reasoning_effort": Use.argument,
    "chat_template_kwargs": Use.arguments,
    "label": Use.label,
    "kto_tag": Use.label,
    "images": Use.refused,
    "image": Use.refused,
    "audios": Use.refused,
    "audio": Use.refused,
    "videos": Use.refused,
    "video": Use.refused,
}

MESSAGE_KEYS: Mapping[str, Use] = {
    "role": Use.role,
    "from": Use.role,
    "content": Use.content,
    "value": Use.content,
    "reasoning_content": Use.reasoning,
    "reasoning": Use.reasoning,
    "thinking": Use.reasoning,
    "tool_plan": Use.reasoning,
    "tool_calls": Use.calls,
    "function_call": Use.calls,
    "tool_call_id": Use.call_id,
    "name": Use.name,
    "train": Use.flag,
    "weight": Use.flag,
    "loss_weight": Use.flag,
    "loss": Use.flag,
    "tools": Use.refused,
    "functions": Use.refused,
    "function_calls": Use.refused,
    "tool_responses": Use.refused,
    "reasoning_details": Use.refused,
    "refusal": Use.refused,
    "images": Use.refused,
    "image": Use.refused,
    "audios": Use.refused,
    "audio": Use.refused,
    "videos": Use.refused,
    "video": Use.refused,
}

# Fields that rows of nearly every format may have, beside their turns.
_BESIDE = (
    "system",
    "history",
    "tools",
    "documents",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "chat_template_kwargs",
)

# Per format, the fields a row must have and those it may have. `prompt` takes either of its two shapes.
Fields: TypeAlias = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
FIELDS: Fields = {
    "instruction": (("instruction", "output"), ("input", "reasoning", "label", *_BESIDE)),
    "prompt_completion": (("prompt", "completion"), ("reasoning", "label", *_BESIDE)),
    "messages": (("messages",), ("label", *_BESIDE)),
    "sharegpt": (("conversations",), ("label", *_BESIDE)),
    "text": (("text",), ()),
    "prompt": (("prompt",), ("instruction", "input", *_BESIDE)),
}

# The same for pairs, which `preferences` reads.
PAIR_FIELDS: Fields = {
    "pairs": (("chosen", "rejected"), ("prompt", "margin", *_BESIDE)),
    "sharegpt_pairs": (("conversations", "chosen", "rejected"), ("margin", *_BESIDE)),
    "hh": (("chosen", "rejected"), ("prompt", "margin", *_BESIDE)),
}

_MEDIA = {"image": "images are", "audio": "audio is", "video": "videos are"}


def spellings(use: Use, keys: Mapping[str, Use] = COLUMNS) -> tuple[str, ...]:
    """Return the keys that become the same thing, the first of which names it."""
    return tuple(name for name, of in keys.items() if of is use)


def is_media(name: str) -> bool:
    """Tell whether a key, or the type of a part, holds an image, audio or video, by its name."""
    return any(kind in name for kind in _MEDIA)


def refusal(name: str) -> str:
    """Say that what a key, or a part of a message, holds is refused."""
    media = next((are for kind, are in _MEDIA.items() if kind in name), "")
    return f"{media} not supported: '{name}'" if media else f"'{name}' is not supported"
