"""A conversation becomes text, cut where the assistant starts and stops speaking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from alignkit.data.encode.sandbox import RENDER_ERRORS, Span, is_marked, render_chat
from alignkit.data.rows.conversation import Message
from alignkit.errors import DataError, TemplateError

PLACEHOLDER = "question-4711"  # a user's words that no template has of its own


class RowRefused(DataError):
    """A row that never reaches the trainer.

    Args:
        reason: short and the same for every row refused for it: what the ledger counts.
        detail: what a person wants to see of this one row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.args = (reason, detail)  # so that pickling rebuilds it
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered text that is tokenized on its own.

    Attributes:
        text: never empty.
        message: index of the assistant message that says it, end token included; None for everything else.
    """

    text: str
    message: int | None = None


@dataclass(frozen=True)
class Template:
    """A chat template bound to one tokenizer.

    Attributes:
        name: as configured, or the file's name.
        jinja: what is stored in the tokenizer.
        variables: what the template sees beside the messages.
        end_token: what every assistant turn ends in; one token.
        end_id: its id; belongs into the stop ids of the generation config.
        response_lead: what the assistant's turn begins with before the content.
        cue: what the generation prompt ends with after the last user's content.
        uses_input: the template places `Message.input` itself; else it follows the content after an empty line.
        refused: what the template cannot render (`system`, `tool`, `tool_calls`) and why.
    """

    name: str
    jinja: str
    variables: dict[str, Any]
    end_token: str = ""
    end_id: int = -1
    response_lead: str = ""
    prompt_suffix: str = ""
    uses_input: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Segment]:
        """Cut the rendered conversation before and after everything the assistant says.

        An assistant turn that the template renders differently once the conversation goes on (reasoning stripped from
        the history) has no segment of its own when the template has no generation markers.

        Raises:
            RowRefused: the template has no place for a role, or raises an error of its own.
        """
        roles = [m.role for m in messages] + ["tool_calls" for m in messages if m.tool_calls]
        for role in [role for role in self.refused if role in roles]:
            what = "tool calls" if role == "tool_calls" else f"{role} messages"
            raise RowRefused(f"template {self.name} refuses {what}: {self.refused[role]}")
        text, marks = self._text(messages, add_generation_prompt)
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not is_marked(self.jinja):
            spans = self._spans_by_difference(messages, turns, text)
        elif len(marks) == len(turns):
            spans = dict(zip(turns, marks, strict=True))
        else:
            raise RowRefused(f"template {self.name} marks {len(marks)} stretches for {len(turns)} assistant turns")
        return self._cut(text, spans)

    def prompt_prefix(self, messages: Sequence[Message]) -> str:
        """Return what the text begins with, system message included, before the first user's content."""
        opening = [*takewhile(lambda m: m.role == "system", messages), Message("user", PLACEHOLDER)]
        text, _ = self._text(opening, add_generation_prompt=False)
        return text.rpartition(PLACEHOLDER)[0]

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool) -> tuple[str, list[Span]]:
        dicts = [self.as_dict(message) for message in messages]
        try:
            return render_chat(self.jinja, dicts, variables=self.variables, add_generation_prompt=add_generation_prompt)
        except TemplateError:
            raise
        except RENDER_ERRORS as error:
            raise RowRefused(f"template {self.name} refuses this conversation: {error}") from error

    def as_dict(self, message: Message) -> dict[str, Any]:
        """Return a message as the template sees it."""
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.input and self.uses_input:
            fields["input"] = message.input
        elif message.input:
            fields["content"] = f"{message.content}\n\n{message.input}"
        if message.tool_calls:
            fields["tool_calls"] = list(message.tool_calls)
        return fields

    def _spans_by_difference(self, messages: Sequence[Message], turns: list[int], text: str) -> dict[int, Span]:
        """What each turn adds to the prompt that asks for it; turns later rewritten are left out."""
        spans = {}
        for i in turns:
            prompt, _ = self._text(messages[:i], add_generation_prompt=True)
            turn, _ = self._text(messages[: i + 1], add_generation_prompt=False)
            stop = turn.rfind(self.end_token) + len(self.end_token)
            if stop > len(prompt) and turn.startswith(prompt) and text.startswith(turn[:stop]):
                spans[i] = (len(prompt), stop)
        return spans

    def _cut(self, text: str, spans: dict[int, Span]) -> list[Segment]:
        segments, done = [], 0
        for message, (start, stop) in spans.items():
            end = text.rfind(self.end_token, start, stop)  # a line break after it is not the assistant's
            stop = end + len(self.end_token) if end >= 0 else stop
            segments += [Segment(text[done:start]), Segment(text[start:stop], message)]
            done = stop
        segments.append(Segment(text[done:]))
        return [segment for segment in segments if segment.text]


def join_segments(segments: Iterable[Segment]) -> str:
    """Return the text that the segments were cut from."""
    return "".join(segment.text for segment in segments)


def first_difference(fed: str, trained: str) -> str:
    """Describe where the prompt of inference and the one of training first differ, with the text around it."""
    at = next((i for i, (a, b) in enumerate(zip(fed, trained, strict=False)) if a != b), min(len(fed), len(trained)))
    around = slice(max(0, at - 40), at + 40)
    return f"from character {at} on inference feeds {fed[around]!r} where training has {trained[around]!r}"
