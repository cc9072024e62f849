"""The law of a trained turn: what a server feeds the model, and what the model must say after it.

For the assistant turn k: P is the prompt that a server renders from the messages before k, T the conversation with turn
k, H the messages before k without the generation prompt, G what P adds to H. Trained is always P + R; T is only where
R comes from. Templates rewrite what came before (reasoning leaves the history, an empty thought appears), so T need not
begin with P; each way in which the two part has its own rule, and what fits none is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit.data.encode.reasoning import WAYS_OUT
from alignkit.data.encode.rendering import AS_TEXT, RowRefused, Template, end_of_tag, first_difference, num_shared
from alignkit.data.encode.sandbox import is_marked
from alignkit.data.rows.conversation import Conversation, Message

CLOSED_BY_US = "thoughts that the prompt opens closed in a form the template has not"
UNREASONED = "responses without reasoning to prompts that open a thought: the model learns to close it at once"

_OTHER = "\ue00b"  # words that no row has


@dataclass(frozen=True, slots=True)
class TrainedTurn:
    """An assistant turn as the model learns it.

    Attributes:
        index: of the message.
        prompt: what a server feeds.
        response: what the model must say, its end token included.
        rest: what the template writes behind it before the next message.
        thought: characters that the response begins with for its reasoning, tags included; 0 where it has none.
        notes: what is counted about it.
    """

    index: int
    prompt: str
    response: str
    rest: str = ""
    thought: int = 0
    notes: tuple[str, ...] = ()


def trained_turn(template: Template, conversation: Conversation, index: int) -> TrainedTurn:
    """Return what is trained of the assistant message at `index`.

    Raises:
        RowRefused: the template cannot render it, or not so that the response follows what inference would feed, or
            it loses some of the response's words.
    """
    prompt, said, notes = said_after(template, conversation, index)
    message = conversation.messages[index]
    response = _ended(template, said, message)
    _check_words(template, message, response)
    return TrainedTurn(index, prompt, response, said[len(response) :], _thought(message, response), tuple(notes))


def said_after(template: Template, conversation: Conversation, index: int) -> tuple[str, str, list[str]]:
    """Return the prompt of the assistant message at `index`, all that the template writes after it, and notes.

    Raises:
        RowRefused: the template cannot render it, or not so that the response follows what inference would feed.
    """
    before = replace(conversation, messages=conversation.messages[:index])
    after = replace(conversation, messages=conversation.messages[: index + 1])
    # Two renderings a turn take 12 to 36 % of the time of encoding (2,000 rows in the templates of Qwen3, Llama 3 and
    # gpt-oss). A template may look into the words of a turn, so no other row's rendering stands for this one's.
    prompt = prompt_text(template, before)
    text, marks = template.marked_text(after)
    said, notes = _said(template, before, after, prompt, text)
    if is_marked(template.jinja) and not any(stop > len(text) - len(said) for _, stop in marks):
        raise RowRefused(f"template {template.name} marks nothing of an assistant turn as generation")
    if template.thought.is_opened_by(prompt):
        said, note = _in_opened_thought(template, said, conversation.messages[index])
        notes += note
    return prompt, said, notes


def _in_opened_thought(template: Template, said: str, message: Message) -> tuple[str, list[str]]:
    """Return what the model says after a prompt that ends in an opening, and what is counted about it."""
    if not message.reasoning:
        return said, [UNREASONED]
    if not template.is_inline:
        return said, []
    if template.thought.opening.strip() in said:
        raise RowRefused(
            f"template {template.name} opens a thought in the prompt and again in the response: data.reasoning=native "
            "writes it in the template's own form, data.reasoning=drop leaves it out"
        )
    reasoning, closing = message.reasoning.strip(), template.thought.closing
    if reasoning in said:
        return said, []
    return reasoning + closing + said.removeprefix(closing).lstrip(), []  # the template cut it off before the words


def prompt_text(template: Template, conversation: Conversation) -> str:
    """Return what a server feeds for a conversation that waits for the assistant.

    Raises:
        RowRefused: the template cannot render it, or loses some of its words.
    """
    text = template.text(conversation, add_generation_prompt=True)
    for tool in conversation.tools:
        if tool["function"]["name"] not in text:
            raise RowRefused(f"template {template.name} leaves out a tool; {AS_TEXT}")
    for at, message in enumerate(conversation.messages):
        words = (message.content, message.input)
        if message.role != "assistant" and not all(word.strip() in text for word in words):
            other = _with_other_words(conversation, at)
            if template.text(other, add_generation_prompt=True) == text:
                raise RowRefused(f"template {template.name} leaves out what the {message.role} says")
    return text


def _said(
    template: Template, before: Conversation, after: Conversation, prompt: str, text: str
) -> tuple[str, list[str]]:
    """Return R, not yet ended, and notes: the five rules."""
    if text.startswith(prompt):
        return text[len(prompt) :], []
    history = template.text(before)
    shared = num_shared(prompt, text)
    if shared < len(history) or not prompt.startswith(history):
        return _rewritten(template, after, prompt, text, asks=prompt.removeprefix(history)), []
    if not prompt[shared:].strip():
        return text[shared:], []
    thought, message = template.thought, after.messages[-1]
    if thought.is_opened_by(prompt) and text.startswith(prompt[: thought.start_in(prompt)]):
        return thought.closing + text[thought.start_in(prompt) :], [] if thought.is_own else [CLOSED_BY_US]
    if message.reasoning and thought.closing.strip() in prompt[len(history) :]:
        way_out = "template.kwargs.enable_thinking=true, or " if "enable_thinking" in template.reads else ""
        raise RowRefused(
            f"the prompt closes the thought and the response has reasoning: {way_out}data.reasoning=drop leaves it out"
        )
    raise _parted(prompt, text)


def _rewritten(template: Template, after: Conversation, prompt: str, text: str, *, asks: str) -> str:
    """The template renders earlier messages otherwise once this turn is there; `asks` is G."""
    other = template.text(_with_other_words(after, len(after.messages) - 1))
    at = text.rfind(asks, 0, num_shared(text, other)) if asks and asks != prompt else -1
    if at < 0:
        raise _parted(prompt, text)
    return text[at + len(asks) :]


def _parted(prompt: str, text: str) -> RowRefused:
    return RowRefused("the generation prompt is not the beginning of the trained text", first_difference(prompt, text))


def _with_other_words(conversation: Conversation, at: int) -> Conversation:
    """Return the conversation with other words in the message at `at`; what was empty stays empty."""
    message = conversation.messages[at]
    other = replace(
        message,
        content=message.content and _OTHER,
        input=message.input and _OTHER,
        reasoning=message.reasoning and _OTHER,
        tool_calls=tuple({**call, "function": {"name": _OTHER, "arguments": {}}} for call in message.tool_calls),
    )
    messages = conversation.messages
    return replace(conversation, messages=(*messages[:at], other, *messages[at + 1 :]))


def _ended(template: Template, said: str, message: Message) -> str:
    """Cut a response behind its end token, or add the token that comes next where a turn has no end of its own."""
    if template.next_tokens:
        return said.rstrip() + template.next_tokens["call" if message.tool_calls else "answer"]
    stop = max((at + len(end) for end in template.ends if (at := said.rfind(end)) >= 0), default=0)
    if not stop:
        raise RowRefused("a trained turn does not end in the end token", repr(said[-40:]))
    return said[:stop]


def _check_words(template: Template, message: Message, response: str) -> None:
    """Refuse a response that does not show all that the message says."""
    lost = []
    if message.content.strip() not in response:
        lost.append("words")
    if message.reasoning.strip() not in response:
        lost.append("reasoning")
    names = [call["function"]["name"] for call in message.tool_calls]
    if any(response.count(name) < names.count(name) for name in names):
        lost.append("calls")
    elif not all(_shows(response, value) for call in message.tool_calls for value in _arguments(call)):
        lost.append("arguments")
    if lost:
        ways_out = f": {WAYS_OUT}" if "reasoning" in lost else ""
        ways_out += f"; {AS_TEXT}" if {"calls", "arguments"} & {*lost} else ""
        raise RowRefused(f"template {template.name} loses {' and '.join(lost)} of a response{ways_out}")


def _arguments(call: dict[str, Any]) -> Iterator[Any]:
    """Yield the values of a call's arguments, from the innermost objects and lists."""
    arguments = call["function"].get("arguments")
    yield from _leaves(json.loads(arguments) if isinstance(arguments, str) else arguments)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _shows(text: str, value: Any) -> bool:
    """Tell whether a value stands in a text, plain, or as JSON or Python write it."""
    forms = [str(value), repr(value)]
    if isinstance(value, str):
        in_python = repr(value + '"')[1:-2]  # with a double quote inside, repr writes single quotes and escapes theirs
        forms = [value, value.strip(), in_python]
    forms += [json.dumps(value, ensure_ascii=False), json.dumps(value)]
    return any((form[1:-1] if form[:1] == '"' else form) in text for form in forms)


def _thought(message: Message, response: str) -> int:
    reasoning = message.reasoning.strip()
    if not reasoning:
        return 0
    return end_of_tag(response, response.index(reasoning) + len(reasoning))


def leaves(turns: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
    """Group turns into the fewest parts, each a row: turn j rides with turn k where P_k begins with P_j + R_j.

    Args:
        turns: the ids of prompt and response of each turn, in order.

    Returns:
        For each part the indices of its turns; the last one's prompt holds the others.
    """
    parts: list[list[int]] = []
    for index in reversed(range(len(turns))):
        prompt, response = turns[index]
        said = [*prompt, *response]
        home = next((part for part in parts if turns[part[-1]][0][: len(said)] == said), None)
        if home is None:
            parts.append([index])
        else:
            home.insert(0, index)
    return parts[::-1]
