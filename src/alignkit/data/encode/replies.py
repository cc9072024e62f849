"""What a model says, read back as it comes: its reasoning, its words, and the tools that it calls.

The parser is transformers', for which a `response_template` says how a model writes its parts. There are the
tokenizer's own, TRL's for the models of today, and ours for the forms that alignkit writes. Which of them fits is not
looked up but tried: the one that reads back turns of our own as the template writes them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing import ResponseParser

from alignkit.choices import ReasoningForm, ToolsForm
from alignkit.data.encode.masking import EncodeRules, RowRefused, encode
from alignkit.data.encode.rendering import Template, Thought
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.data.rows.tool_calls import Call, read_calls
from alignkit.data.rows.tools import Tool
from alignkit.data.rows.values import RowError

Spec = Mapping[str, Any]

_UNREADABLE = (ValueError, RowError)
_REASONING = ("reasoning_content", "thinking", "reasoning", "tool_plan")  # as a response template may name it

_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "A key."}}},
    },
}
_CALLING: Call = {"type": "function", "id": "call04711", "function": {"name": "look_up", "arguments": {"key": "some"}}}
_ANSWER, _CALL = Message("assistant", "These words."), Message("assistant", "", tool_calls=(_CALLING,))
_THINKING, _THINKING_CALL = (
    Message("assistant", said.content, tool_calls=said.tool_calls, reasoning="A reason.") for said in (_ANSWER, _CALL)
)
_TRIED = (_ANSWER, _CALL, _THINKING, _THINKING_CALL)


@dataclass(frozen=True)
class Piece:
    """A part of a reply, as it is shown.

    Attributes:
        kind: `words`, `reasoning` or `call`.
        text: of a call, its name and arguments.
    """

    kind: str
    text: str


class ReplyReader:
    """Reads one reply.

    Args:
        spec: a `response_template`; None takes all of it for words.
        prompt: the text that it answers, which may have opened a thought.
        tools: that it may call; they say of which type an argument is.
    """

    def __init__(self, spec: Spec | None, prompt: str, tools: Sequence[Tool] = ()) -> None:
        self._make = None if spec is None else partial(ResponseParser, dict(spec), prefix=prompt, tools=list(tools))
        self._parser = self._make() if self._make else None
        self._text = ""
        self._shown: list[Piece] = []

    @property
    def knows_parts(self) -> bool:
        """Whether it tells reasoning and calls from words."""
        return self._make is not None

    def feed(self, text: str) -> list[Piece]:
        """Read on; return what can be shown by now: never half a call, nor a part of a tag.

        What follows a call waits for the end: there it is sure where the call ended.
        """
        self._text += text
        if self._make is None:
            return [Piece("words", text)]
        if self._parser is None:
            return []
        try:
            pieces = list(_pieces(self._parser.feed(text)))
        except _UNREADABLE:  # what is read so far stays; the rest is shown at the end
            self._parser = None
            return []
        if any(piece.kind == "call" for piece in pieces):
            self._parser = None
            pieces = pieces[: 1 + next(at for at, piece in enumerate(pieces) if piece.kind == "call")]
        self._shown += pieces
        return pieces

    def finish(self) -> tuple[Message, list[Piece]]:
        """Return the whole reply, and what is still to be shown of it.

        What is in no form that can be read, such as a call that is no JSON, is words, and so is the whole reply then.
        """
        whole = Message("assistant", self._text)
        if self._make is None:
            return whole, []
        try:
            parser = self._make()
            events = parser.feed(self._text)
            said, last = parser.finalize()
            if message := _message(said):
                return message, list(self._rest([*_pieces(events), *_pieces(last)]))
        except _UNREADABLE:
            pass
        return whole, [Piece("words", f"\n{self._text}" if self._shown else self._text)]

    def _rest(self, pieces: Sequence[Piece]) -> Iterator[Piece]:
        """Yield what has not been shown of the pieces of the whole reply."""
        lengths = Counter[str]()
        for piece in self._shown:
            lengths[piece.kind] += len(piece.text)
        for piece in pieces:
            num_shown = min(lengths[piece.kind], len(piece.text))
            lengths[piece.kind] -= num_shown
            if num_shown < len(piece.text):
                yield Piece(piece.kind, piece.text[num_shown:])


def _pieces(events: Sequence[dict[str, Any]]) -> Iterator[Piece]:
    for event in events:
        if event["field"] == "tool_calls" and event["type"] == "region_close":
            value = event["value"]
            yield from (Piece("call", call_text(call)) for call in read_calls(value, "tool_calls"))
        elif event["field"] != "tool_calls" and event["type"] == "region_chunk":
            yield Piece("reasoning" if event["field"] in _REASONING else "words", event["text"])


def _message(said: Mapping[str, Any]) -> Message | None:
    calls = read_calls(said.get("tool_calls", []), "tool_calls")
    words, reasoning = str(said.get("content", "")), next((str(said[key]) for key in _REASONING if key in said), "")
    if not (words or reasoning or calls):
        return None
    return Message("assistant", words.strip() if calls else words, tool_calls=calls, reasoning=reasoning)


def call_text(call: Call) -> str:
    """Return a call as it is shown: the name, and the arguments as JSON."""
    arguments = call["function"]["arguments"]
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{call['function']['name']} {shown}"


@dataclass(frozen=True)
class ReplyForm:
    """In which form a model replies.

    Attributes:
        template: bound to `tokenizer`.
        tokenizer: of the model.
        rules: in which form its tools and reasoning were trained.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    rules: EncodeRules

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))


def reply_spec(policy: ReplyForm) -> Spec | None:
    """Find how a model's replies are read; None where its template writes neither reasoning nor calls."""
    turns = list(_written(policy))
    known = _known(policy) if policy.template.thought.key or any(said.tool_calls for said, _, _ in turns) else []
    fits = [(sum(_reads(spec, *turn) for turn in turns), spec) for spec in _specs(policy, known)]
    most, spec = max(fits, key=lambda fit: fit[0])  # the first of several
    return spec if most and spec["fields"].keys() > {"content"} else None


def _written(policy: ReplyForm) -> Iterator[tuple[Message, str, str]]:
    """Yield turns of our own that the template writes: the message, its prompt, and what a model must say."""
    for said in _TRIED:
        asked = Conversation((Message("user", "Some question."), said), tools=(_TOOL,) if said.tool_calls else ())
        with suppress(RowRefused):
            (part,) = encode(asked, policy.template, policy.tokenizer, policy.rules)
            start, stop = part.responses[-1]
            yield said, policy.decode(part.input_ids[:start]), policy.decode(part.input_ids[start:stop])


def _reads(spec: Spec, said: Message, prompt: str, response: str) -> bool:
    try:
        reader = ReplyReader(spec, prompt, (_TOOL,))
    except ValueError:  # the form of another template makes nothing of this prompt
        return False
    reader.feed(response)
    found, _ = reader.finish()
    calls = [call["function"] for call in found.tool_calls]
    words = (found.content.strip(), found.reasoning.strip())
    return words == (said.content, said.reasoning) and calls == [call["function"] for call in said.tool_calls]


def _specs(policy: ReplyForm, known: Sequence[Spec]) -> Iterator[Spec]:
    """Yield response templates that may fit: first those in which every character of a reply has its place."""
    calls = [spec["fields"]["tool_calls"] for spec in known if "tool_calls" in spec["fields"]]
    if policy.rules.tools is ToolsForm.system:
        calls, known = [_call_line(policy)], []
    if policy.rules.reasoning is not ReasoningForm.native:
        known = []
    yield _around(policy, {})
    yield from (_around(policy, {"tool_calls": field}) for field in calls)
    yield from known


def _call_line(policy: ReplyForm) -> Spec:
    """Return the form of calls that `data.tools=system` writes."""
    behind_thought = re.escape(policy.template.thought.closing.strip())
    return {
        "open_pattern": rf"(?:(?<![^\n])|(?<={behind_thought}))Call: (?=\{{)",
        "close_pattern": rf"\n|(?={_ends(policy)})",
        "repeats": True,
        "content": "json",
        "transform": {"type": "function", "function": "{content}"},
    }


def _ends(policy: ReplyForm) -> str:
    return "|".join(map(re.escape, dict.fromkeys((*policy.template.stops, *policy.template.ends))))


def _around(policy: ReplyForm, calls: Spec) -> Spec:
    """Build a response template around a form of calls, from what is known of the template."""
    template = policy.template
    is_inline = policy.rules.reasoning is ReasoningForm.inline
    thought = Thought() if is_inline else template.thought
    reasoning = {
        "reasoning_content": {
            "open_pattern": re.escape(thought.opening.strip()) + r"\s*",
            "close_pattern": r"\s*" + re.escape(thought.closing.strip()) + r"\s*",
        }
    }
    has_place = is_inline or thought.key or thought.opening.strip() in template.jinja
    words = {"close_pattern": _ends(policy), "repeats": True, "join": "", "content_args": {"strip": False}}
    return {
        # All of a prompt but a thought that it opens.
        "start_anchor_pattern": rf"(?s)^.*(?={re.escape(thought.opening.strip())}\s*$)|^.*$",
        "fields": {**(reasoning if has_place else {}), **calls, "content": words},
    }


def _known(policy: ReplyForm) -> list[Spec]:
    """List the response template of a tokenizer, if it has one, and those of TRL."""
    from trl import chat_template_utils  # slow to import, and only needed where a reply has parts

    of_trl = [value for name, value in vars(chat_template_utils).items() if name.endswith("_template")]
    found = [getattr(policy.tokenizer, "response_template", None), *of_trl]
    return [spec for spec in found if isinstance(spec, dict) and "fields" in spec]
