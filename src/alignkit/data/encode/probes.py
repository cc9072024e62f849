"""What a template does with conversations of our own: where turns end, how it writes a thought, what it leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.data.encode.rendering import PLACEHOLDER, RowRefused, Template, Thought, end_of_tag, opening_before
from alignkit.data.encode.trained_turns import said_after, trained_turn
from alignkit.data.rows.conversation import Conversation, Message
from alignkit.errors import TemplateError

# words that no template has; each of `_REFUSABLE` shows EXTRA once one of its forms renders
_WORDS, _EXTRA, _REASON = "answer-4711", "extra-4711", "reason-4711"
QUESTION, ANSWER = Message("user", PLACEHOLDER), Message("assistant", _WORDS)

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "tool_plan")
_TOOL = {
    "type": "function",
    "function": {
        "name": _EXTRA,
        "description": "looks up",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "a key"}}},
    },
}


def _calling(arguments: Any, name: str = _EXTRA) -> Message:
    call = {"type": "function", "id": "call04711", "function": {"name": name, "arguments": arguments}}
    return Message("assistant", "", tool_calls=(call,))


_CALL = _calling({"key": _WORDS})
_RESULT = Message("tool", _EXTRA, name="other", tool_call_id="call04711")
_REFUSABLE = {
    "system": [Conversation((Message("system", _EXTRA), QUESTION, ANSWER))],
    "tool": [
        Conversation((QUESTION, ANSWER, _RESULT, ANSWER)),
        Conversation((QUESTION, _calling({}, "other"), _RESULT, ANSWER), tools=(_TOOL,)),
    ],
    "tools": [Conversation((QUESTION, ANSWER), tools=(_TOOL,))],
    "tool_calls": [Conversation((QUESTION, _CALL)), Conversation((QUESTION, _CALL), tools=(_TOOL,))],
}


def probed(draft: Template, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return the template with all that trying it tells.

    Raises:
        TemplateError: it leaves out what the user or the assistant says, or no token ends an answer.
        RowRefused: it renders no question, or no answer to it.
    """
    asked, answered = Conversation((QUESTION,)), Conversation((QUESTION, ANSWER))
    prompt, (text, marks) = draft.text(asked, add_generation_prompt=True), draft.marked_text(answered)
    if PLACEHOLDER not in prompt or _WORDS not in text:
        raise TemplateError("it leaves out what the user or the assistant says")
    template = replace(draft, calls_as_text=_wants_text(draft))
    template = replace(template, thought=_thought(template))
    marked = text[: marks[-1][1]] if marks else text
    template = _with_ends(template, marked.rpartition(_WORDS)[2], tokenizer, may_be_open=not marks)
    turn = trained_turn(template, answered, 1)
    template = replace(
        template,
        response_lead=turn.response.partition(_WORDS)[0],
        user_heading=_user_heading(template, text),
        prompt_suffix=prompt.rpartition(PLACEHOLDER)[2],
    )
    placed = replace(template, uses_input=True)
    with_input = placed.text(Conversation((Message("user", PLACEHOLDER, input=_EXTRA),)), add_generation_prompt=True)
    template = placed if _EXTRA in with_input else template
    return replace(template, refused=_refusals(template))


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a text, nothing added."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def is_token(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a text is one token."""
    ids = token_ids(text, tokenizer)
    return len(ids) == 1 and tokenizer.decode(ids) == text


def _user_heading(draft: Template, answered: str) -> str:
    try:
        text = draft.text(Conversation((QUESTION, ANSWER, QUESTION)))
    except RowRefused:  # it is for single turns
        return ""
    end, behind = answered.rpartition(_WORDS)[2], text.rpartition(PLACEHOLDER)[0].rpartition(_WORDS)[2]
    return behind.removeprefix(end).lstrip() if behind.startswith(end) else ""


def _wants_text(draft: Template) -> bool:
    """Objects first: where a template wants them, a text goes wrong in silence."""
    if _rendered(draft, _CALL):
        return False
    return _rendered(replace(draft, calls_as_text=True), _CALL)


def _rendered(template: Template, answer: Message) -> bool:
    return any(_WORDS in text and _EXTRA in text for text in _texts(template, answer))


def _texts(template: Template, *said: Message) -> Iterator[str]:
    for tools in ((), (_TOOL,)):
        try:
            yield template.text(Conversation((QUESTION, *said), tools=tools))
        except RowRefused:
            continue


def _thought(draft: Template) -> Thought:
    """Find the key under which the template reads reasoning, and what it writes around it."""
    for key in _REASONING_KEYS:
        template = replace(draft, thought=Thought(key))
        said = (replace(ANSWER, reasoning=_REASON), replace(_CALL, reasoning=_REASON))
        found = {_REASON in text: text for text in chain(*(_texts(template, message) for message in reversed(said)))}
        if True in found:
            before, _, behind = found[True].rpartition(_REASON)
            is_answer = _WORDS in behind and _EXTRA not in behind
            closing = behind.partition(_WORDS)[0] if is_answer else behind[: end_of_tag(behind, 0)]
            opening = opening_before(before) or Thought.opening
            return Thought(key, opening, closing, is_own=True) if closing.strip() else Thought(key, opening)
    return Thought()


def _with_ends(draft: Template, tail: str, tokenizer: PreTrainedTokenizerBase, *, may_be_open: bool) -> Template:
    """Find the tokens that end a turn, and those at which generation stops; `tail` is what follows an answer's words.

    Tokens inside a turn stop nothing, though some other turn may end in them.
    """
    added = _any_added(tokenizer)
    if not tail.strip() and may_be_open:
        return _with_next_tokens(draft, added, tokenizer)
    end = _end_of(tail, added, tokenizer)
    ends, inside = {end: None}, set()
    for said in _turns(draft):
        if end != tokenizer.eos_token:  # which else ends turns, whatever layout stands before it
            said = _without_document_end(said, tokenizer)
        *before, last = added.findall(said) or [end]
        ends[last] = None
        inside.update(before)
    return _ending(draft, [text for text in ends if text not in inside] or [end], tokenizer, ends=tuple(ends))


def _ending(draft: Template, stops: list[str], tokenizer: PreTrainedTokenizerBase, **found: Any) -> Template:
    ids = [token_ids(text, tokenizer)[0] for text in stops]
    return replace(draft, end_token=stops[0], end_id=ids[0], stops=tuple(stops), stop_ids=tuple(ids), **found)


def _with_next_tokens(draft: Template, added: re.Pattern[str], tokenizer: PreTrainedTokenizerBase) -> Template:
    """Turns have no end of their own: what comes next ends them, a question, or a tool's result after a call."""
    following = {
        "answer": (ANSWER, Conversation((QUESTION, ANSWER, QUESTION))),
        "call": (_CALL, Conversation((QUESTION, _CALL, _RESULT), tools=(_TOOL,))),
    }
    found = {}
    for kind, (message, conversation) in following.items():
        with suppress(RowRefused):
            turn = draft.text(replace(conversation, messages=(QUESTION, message))).rstrip()
            behind = draft.text(conversation).rpartition(turn[-_NUM_SHOWN:])[2].lstrip()
            if token := added.match(behind):
                found[kind] = token[0]
    if "answer" not in found:
        raise _no_end("", tokenizer)
    found.setdefault("call", found["answer"])
    return _ending(draft, list(dict.fromkeys(found.values())), tokenizer, next_tokens=found)


_NUM_SHOWN = 10  # characters by which a turn's end is found again


def _turns(draft: Template) -> Iterator[str]:
    """Yield what the model says in every kind of turn that the template has."""
    for message in (ANSWER, _CALL):
        for said in (message, replace(message, reasoning=_REASON)):
            for tools in ((), (_TOOL,)):
                with suppress(RowRefused):
                    _, text, _ = said_after(draft, Conversation((QUESTION, said), tools=tools), 1)
                    if _WORDS in text and (not said.reasoning or _REASON in text):
                        yield text
                        break


def _end_of(tail: str, added: re.Pattern[str], tokenizer: PreTrainedTokenizerBase) -> str:
    text = _without_document_end(tail, tokenizer).strip()
    if is_token(text, tokenizer):
        return text
    found = added.findall(text)
    if not found:
        raise _no_end(tail, tokenizer)
    return str(found[-1])


def _no_end(tail: str, tokenizer: PreTrainedTokenizerBase) -> TemplateError:
    missing = " (the tokenizer has no eos token)" if tokenizer.eos_token is None else ""
    return TemplateError(
        f"after the content the assistant's turn goes on with {tail!r}, which holds no token that could end it"
        f"{missing}; in a template of yours write {{{{ end }}}} there, or choose one of the shipped templates"
    )


def _without_document_end(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Cut off an eos that stands after layout: it ends the document, not the turn."""
    eos = tokenizer.eos_token
    shorter = text.rstrip().removesuffix(eos) if eos else text
    ends_layout = shorter != shorter.rstrip() and shorter.strip()
    return shorter if ends_layout else text


def _any_added(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    tokens = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in tokens if token.strip()) or "(?!)")


def _refusals(template: Template) -> dict[str, str]:
    refused = {} if template.thought.key else {"reasoning": "it has no place for it"}
    for what, conversations in _REFUSABLE.items():
        words = []
        for conversation in conversations:
            try:
                words.append("" if _EXTRA in template.text(conversation) else "it leaves them out")
            except RowRefused as error:
                words.append(str(error.__cause__ or error))
        if all(words):
            refused[what] = words[-1]
    return refused
