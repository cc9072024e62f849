"""A conversation becomes text, as a server renders it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from alignkit.data.encode.sandbox import RENDER_ERRORS, Span, render_chat
from alignkit.data.rows.conversation import ROLES, Conversation, Message
from alignkit.data.rows.values import is_nothing
from alignkit.errors import DataError, TemplateError

PLACEHOLDER = "question-4711"  # a user's words that no template has of its own
AS_TEXT = "a run with data.tools=system writes them as text"  # tools, calls and results


class RowRefused(DataError):
    """A row that never reaches the trainer.

    Args:
        reason: short and the same for every row refused for it: what the ledger counts.
        detail: what a person wants to see of this one row.
        malformed: the row itself is wrong, so `data.malformed` decides.
    """

    def __init__(self, reason: str, detail: str = "", malformed: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.args = (reason, detail, malformed)  # so that pickling rebuilds it
        self.reason = reason
        self.malformed = malformed


@dataclass(frozen=True)
class Thought:
    """How a template writes an assistant's reasoning.

    Attributes:
        key: of the message, under which the template reads it; empty where it has no place for it.
        opening: what stands before it, such as `<think>` and a line break.
        closing: what stands between it and the words.
        is_own: the closing is what the template writes; else `CLOSING`.
    """

    key: str = ""
    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"
    is_own: bool = False

    def is_opened_by(self, prompt: str) -> bool:
        """Tell whether a prompt ends in an opening, so that the model goes on with its reasoning."""
        return prompt.rstrip().endswith(self.opening.strip())

    def start_in(self, prompt: str) -> int:
        """Return where the opening that a prompt ends in begins."""
        return prompt.rindex(self.opening.strip())


@dataclass(frozen=True)
class Template:
    """A chat template bound to one tokenizer.

    Attributes:
        name: as configured, or the file's name.
        jinja: what is stored in the tokenizer.
        is_shipped: it came with alignkit; a row keeps the layout behind its last response, as it always had.
        variables: what the template sees beside the conversation: special tokens and `template.kwargs`.
        reads: names that the template asks for beside the messages.
        end_token: what an answer ends in; one token.
        end_id: its id.
        ends: what a trained turn can end in: of an answer, of a call.
        stops: tokens at which generation stops, as text; the first is `end_token`.
        stop_ids: their ids; they belong into the generation config.
        next_tokens: where turns have no end of their own, the token that comes next: after an `answer`, after a `call`.
        response_lead: what the assistant says before the content, such as an empty thought.
        user_heading: what stands before a user's content behind an answer; empty where that is not told.
        prompt_suffix: what the generation prompt ends with after the last user's content.
        uses_input: the template places `Message.input` itself; else it follows the content after an empty line.
        calls_as_text: the template wants a call's arguments as JSON text; else as an object.
        thought: how it writes reasoning.
        is_inline: reasoning is written into the content, `<think>…</think>` before the words.
        refused: what it cannot render (`system`, `tool`, `tools`, `tool_calls`, `reasoning`) and why.
    """

    name: str
    jinja: str
    variables: Mapping[str, Any]
    reads: frozenset[str] = frozenset()
    is_shipped: bool = False
    end_token: str = ""
    end_id: int = -1
    ends: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    next_tokens: Mapping[str, str] = field(default_factory=dict)
    response_lead: str = ""
    user_heading: str = ""
    prompt_suffix: str = ""
    uses_input: bool = False
    calls_as_text: bool = False
    thought: Thought = field(default_factory=Thought)
    is_inline: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)

    def text(self, conversation: Conversation, *, add_generation_prompt: bool = False) -> str:
        """Render what `tokenizer.apply_chat_template(tokenize=False)` gives.

        Raises:
            RowRefused: the template raises an error of its own.
        """
        return self.marked_text(conversation, add_generation_prompt=add_generation_prompt, find_marks=False)[0]

    def marked_text(
        self, conversation: Conversation, *, add_generation_prompt: bool = False, find_marks: bool = True
    ) -> tuple[str, list[Span]]:
        """Render as `text` does, and find the template's generation blocks.

        Raises:
            RowRefused: the template raises an error of its own.
        """
        try:
            return render_chat(
                self.jinja,
                [self.as_dict(message) for message in conversation.messages],
                variables={**self.variables, **conversation.template_kwargs},
                tools=list(conversation.tools),
                add_generation_prompt=add_generation_prompt,
                find_marks=find_marks,
            )
        except TemplateError:
            raise
        except RENDER_ERRORS as error:
            raise RowRefused(f"template {self.name} refuses this conversation: {error}") from error

    def check(self, conversation: Conversation) -> None:
        """Refuse what the template is known to have no place for.

        Raises:
            RowRefused: a role, tools, calls, or an argument that the template never reads.
        """
        has = {message.role for message in conversation.messages}
        has |= {"tool_calls"} if any(message.tool_calls for message in conversation.messages) else set()
        has |= {"tools"} if conversation.tools else set()
        for what in [what for what in self.refused if what in has]:
            name = f"{what} messages" if what in ROLES else what.replace("_", " ")
            way_out = f"; {AS_TEXT}" if what.startswith("tool") else ""
            raise RowRefused(f"template {self.name} refuses {name}: {self.refused[what]}{way_out}")
        given = {name for name, value in conversation.template_kwargs.items() if not is_nothing(value)}
        if unread := sorted(given - self.reads):
            raise RowRefused(f"template {self.name} never reads {', '.join(unread)}", malformed=True)

    def prompt_prefix(self, conversation: Conversation) -> str:
        """Return what the text begins with, tools and system message included, before the first user's content."""
        opening = [*takewhile(lambda m: m.role in ("system", "developer"), conversation.messages)]
        asked = Conversation(
            (*opening, Message("user", PLACEHOLDER)),
            tools=conversation.tools,
            template_kwargs=conversation.template_kwargs,
        )
        return self.text(asked).rpartition(PLACEHOLDER)[0]

    def as_dict(self, message: Message) -> dict[str, Any]:
        """Return a message as the template sees it."""
        role = "system" if message.role == "developer" and "developer" not in self.jinja else message.role
        fields: dict[str, Any] = {"role": role, "content": message.content}
        if message.input and self.uses_input:
            fields["input"] = message.input
        elif message.input:
            fields["content"] = f"{message.content}\n\n{message.input}"
        if message.tool_calls:
            fields["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.reasoning and self.is_inline:
            fields["content"] = f"<think>\n{message.reasoning}\n</think>\n\n{message.content}"
        elif message.reasoning and self.thought.key:
            fields[self.thought.key] = message.reasoning
        if message.name:
            fields["name"] = message.name
        if message.tool_call_id:
            fields["tool_call_id"] = message.tool_call_id
        return fields

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        arguments = function.get("arguments")
        if self.calls_as_text and not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        elif not self.calls_as_text and isinstance(arguments, str):
            function["arguments"] = json.loads(arguments)
        return {**call, "function": function}


def first_difference(fed: str, trained: str) -> str:
    """Describe where the prompt of inference and the one of training first differ, with the text around it."""
    at = num_shared(fed, trained)
    around = slice(max(0, at - 40), at + 40)
    return f"from character {at} on inference feeds {fed[around]!r} where training has {trained[around]!r}"


def num_shared(one: str, other: str) -> int:
    """Count the characters that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


_TAG = re.compile(r"\s*(<[^<>]*>|\[[^\[\]]*\])\s*")
_OPENING = re.compile(r"[<\[][^<>\[\]\n]*[>\]][^<>\[\]]*$")


def opening_before(text: str) -> str:
    """Return the tag that a text ends in, with what follows it."""
    found = _OPENING.search(text)
    return found[0] if found else ""


def end_of_tag(text: str, start: int) -> int:
    """Return where the tag that begins at `start` ends, the white space around it included; `start` without one."""
    found = _TAG.match(text, start)
    return found.end() if found else start
