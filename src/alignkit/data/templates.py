"""Chat templates: a conversation becomes text, cut where the assistant begins and stops to speak.

A template is bound to one tokenizer when it is loaded: its end token is chosen, the mistakes a template can have are
found on a conversation of our own, and what it leaves out or refuses is written down. `Template.jinja` needs nothing
of ours afterwards: stored in the tokenizer it renders the same text wherever the model is served.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from alignkit.config import TemplateConfig
from alignkit.data.conversation import Message
from alignkit.data.rendering import RENDER_ERRORS, Span, bounded, is_marked, render_chat
from alignkit.errors import DataError, TemplateError, did_you_mean

SHIPPED = ("instruction", "user_bot", "question_answer", "human_assistant", "chatml")
OWN_END = {"chatml": "<|im_end|>"}  # the other shipped templates end in the tokenizer's eos

# a conversation in words no template has of its own; PROBES: one of them has to show EXTRA
QUESTION, ANSWER, EXTRA = "question-4711", "answer-4711", "extra-4711"
ASKED, ANSWERED, OBSERVED = Message("user", QUESTION), Message("assistant", ANSWER), Message("tool", EXTRA)
CALL = {"type": "function", "id": "call04711", "function": {"name": EXTRA, "arguments": {}}}
OTHER_CALL = {"type": "function", "id": "call04711", "function": {"name": "other", "arguments": {}}}
PROBES = {
    "system": [[Message("system", EXTRA), ASKED, ANSWERED]],
    "tool": [
        [ASKED, ANSWERED, OBSERVED, ANSWERED],
        [ASKED, Message("assistant", "", tool_calls=(OTHER_CALL,)), OBSERVED, ANSWERED],
    ],
    "tool_calls": [[ASKED, Message("assistant", "", tool_calls=(CALL,))]],
}


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
    """A stretch of rendered text that is tokenised on its own.

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
    cue: str = ""
    uses_input: bool = False
    refused: dict[str, str] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Segment]:
        """Cuts the rendered conversation before and after everything the assistant says.

        An assistant turn that the template renders otherwise once the conversation goes on (reasoning stripped from
        the history) has no segment of its own when the template has no generation markers.

        Raises:
            RowRefused: the template has no place for a role, or raises an error of its own.
        """
        roles = [m.role for m in messages] + ["tool_calls" for m in messages if m.tool_calls]
        for role in self.refused.keys() & set(roles):
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

    def head(self, messages: Sequence[Message]) -> str:
        """What the text of this conversation begins with, system message included, before the first user's content."""
        system = list(takewhile(lambda m: m.role == "system", messages))
        return self._text([*system, ASKED], add_generation_prompt=False)[0].rpartition(QUESTION)[0]

    def _text(self, messages: Sequence[Message], add_generation_prompt: bool) -> tuple[str, list[Span]]:
        dicts = [self._as_dict(message) for message in messages]
        try:
            return render_chat(self.jinja, dicts, variables=self.variables, add_generation_prompt=add_generation_prompt)
        except TemplateError:
            raise
        except RENDER_ERRORS as error:
            raise RowRefused(f"template {self.name} refuses this conversation: {error}") from error

    def _as_dict(self, message: Message) -> dict[str, Any]:
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
                spans[i] = (len(prompt), len(turn))
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


def load_template(config: TemplateConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Binds the configured template to a tokenizer and tries it on a conversation of our own.

    Checked here: the generation prompt is what training has before the answer, every answer ends in one token, and
    no beginning or end token is doubled.

    Raises:
        TemplateError: no such template, broken Jinja, no generation markers, or a check that failed.
    """
    where = f"template.file={config.file}" if config.file else f"template.name={config.name}"
    try:
        jinja = _source(config, tokenizer)
        name = Path(config.file).name if config.file else config.name
        with bounded():
            return _tried(Template(name, jinja, dict(tokenizer.special_tokens_map)), tokenizer)
    except RowRefused as error:
        broken = error.__cause__
        line = f":{broken.lineno}" if isinstance(broken, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(f"{where}{line}: {broken or error}") from error
    except TemplateError as error:
        raise TemplateError(f"{where}: {error}") from error


def joined(segments: Iterable[Segment]) -> str:
    """The text the segments were cut from."""
    return "".join(segment.text for segment in segments)


def parting(fed: str, trained: str) -> str:
    """Where the prompt that inference feeds and the one that training has go apart, with the words around it."""
    at = next((i for i, (a, b) in enumerate(zip(fed, trained, strict=False)) if a != b), min(len(fed), len(trained)))
    around = slice(max(0, at - 40), at + 40)
    return f"from character {at} on inference feeds {fed[around]!r} where training has {trained[around]!r}"


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins a text with its bos token by default; then a template does, too."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _source(config: TemplateConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if config.file:
        return _with_ends(_marked_file(Path(config.file)), "", tokenizer)
    if config.name in SHIPPED:
        text = resources.files("alignkit.conf.template").joinpath(f"{config.name}.jinja").read_text("utf-8")
        return _with_ends(text, OWN_END.get(config.name, ""), tokenizer)
    if config.name != "native":
        suggestion = did_you_mean(config.name, [*SHIPPED, "native"])
        raise TemplateError(f"no such template{suggestion}; there are {', '.join(SHIPPED)} and native")
    if not tokenizer.chat_template:
        raise TemplateError(f"the tokenizer has no chat template of its own: choose one of {', '.join(SHIPPED)}")
    return tokenizer.get_chat_template()


def _marked_file(path: Path) -> str:
    if not path.is_file():
        raise TemplateError("no such file")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not is_marked(text):
        raise TemplateError(
            "no {% generation %} marker, so nothing says what to train on: write "
            "{% generation %}{{ message.content + end }}{% endgeneration %} where the assistant speaks"
        )
    return text


def _with_ends(source: str, own_end: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Sets `bos` and `end`, which shipped templates leave open, for this tokenizer; on line one, lines keep numbers."""
    bos = "bos_token" if adds_bos(tokenizer) else '""'
    end = json.dumps(own_end, ensure_ascii=False) if _is_token(own_end, tokenizer) else "eos_token"
    return f"{{%- set bos = {bos} -%}}{{%- set end = {end} -%}}{source}"


def _tried(draft: Template, tokenizer: PreTrainedTokenizerBase) -> Template:
    segments = draft.render([ASKED, ANSWERED])
    prompt = joined(draft.render([ASKED], add_generation_prompt=True))
    before = joined(takewhile(lambda segment: segment.message is None, segments))
    if before != prompt:
        raise TemplateError(
            f"the generation prompt is not the beginning of the trained text: {parting(prompt, before)}"
        )
    said = next(segment.text for segment in segments if segment.message == 1)
    if QUESTION not in prompt or ANSWER not in said:
        raise TemplateError("it leaves out what the user or the assistant says")
    lead, _, tail = said.partition(ANSWER)
    end = _end_token(tail, tokenizer)
    (end_id,) = _ids(end, tokenizer)
    template = replace(draft, end_token=end, end_id=end_id, response_lead=lead, cue=prompt.rpartition(QUESTION)[2])
    _check_boundaries(template, tokenizer)
    placed = replace(template, uses_input=True)
    with_input = joined(placed.render([Message("user", QUESTION, input=EXTRA)], add_generation_prompt=True))
    template = placed if EXTRA in with_input else template
    return replace(template, refused=_refusals(template))


def _end_token(tail: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if _is_token(tail, tokenizer):
        return tail
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token).strip()]
    ends = [(tail.find(token), -len(token), token) for token in added if token in tail]
    if not ends:
        missing = " (the tokenizer has no eos token)" if tokenizer.eos_token is None else ""
        raise TemplateError(
            f"after the content the assistant's turn goes on with {tail!r}, which holds no token that could end it"
            f"{missing}; in a template of yours write {{{{ end }}}} there, or choose one of {', '.join(SHIPPED)}"
        )
    return min(ends)[2]


def _check_boundaries(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, template.end_id}
    for messages in ([ASKED, ANSWERED], [ASKED, ANSWERED, ASKED, ANSWERED]):
        with suppress(RowRefused):  # a template may be for single turns
            ids = [i for segment in template.render(messages) for i in _ids(segment.text, tokenizer)]
            doubled = [a for a, b in pairwise(ids) if a == b and a in ends]
            if doubled:
                raise TemplateError(f"it writes {tokenizer.decode(doubled[:1])} twice in a row")


def _refusals(template: Template) -> dict[str, str]:
    refused = {}
    for role, conversations in PROBES.items():
        words = []
        for messages in conversations:
            try:
                words.append("" if EXTRA in joined(template.render(messages)) else "it leaves them out")
            except RowRefused as error:
                words.append(str(error.__cause__ or error))
        if all(words):
            refused[role] = words[-1]
    return refused


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _is_token(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = _ids(text, tokenizer)
    return len(ids) == 1 and tokenizer.decode(ids) == text
