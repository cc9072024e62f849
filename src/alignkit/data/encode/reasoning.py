"""Reasoning as the configuration asks for it: in the template's own form, inline before the words, or left out."""

from __future__ import annotations

import re
from dataclasses import replace

from alignkit.choices import ReasoningForm
from alignkit.data.encode.rendering import RowRefused, Template
from alignkit.data.rows.conversation import Conversation, Message

WAYS_OUT = "data.reasoning=inline writes it before the answer, data.reasoning=drop leaves it out"
DROPPED = "responses without their reasoning (data.reasoning=drop)"

_LEADING = re.compile(r"\s*<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


def with_reasoning(
    conversation: Conversation, template: Template, form: ReasoningForm
) -> tuple[Conversation, Template, tuple[str, ...]]:
    """Return the conversation and the template that render its reasoning in this form, and what is counted.

    A leading `<think>…</think>` in a response is reasoning where the template has a form for it, or the form is not the
    template's.

    Raises:
        RowRefused: the template has no place for the reasoning of a response.
    """
    is_read = template.thought.key or form is not ReasoningForm.native
    messages = tuple(map(_split, conversation.messages)) if is_read else conversation.messages
    if not any(message.reasoning for message in messages):
        return conversation, template, ()
    if form is ReasoningForm.drop:
        messages = tuple(replace(message, reasoning="") for message in messages)
        return replace(conversation, messages=messages), template, (DROPPED,)
    if form is ReasoningForm.native and not template.thought.key:
        raise RowRefused(f"template {template.name} has no place for reasoning: {WAYS_OUT}")
    is_inline = form is ReasoningForm.inline
    return replace(conversation, messages=messages), replace(template, is_inline=is_inline), ()


def _split(message: Message) -> Message:
    found = _LEADING.match(message.content) if message.role == "assistant" and not message.reasoning else None
    if not found or not found[1].strip():
        return message
    return replace(message, reasoning=found[1], content=message.content[found.end() :])
