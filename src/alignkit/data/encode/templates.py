"""Chat templates: found, bound to a tokenizer, and tried before anything is trained.

A template is bound to one tokenizer when it is loaded: its end token is chosen, the mistakes a template can have are
found on a conversation of our own, and what it leaves out or refuses is written down. `Template.jinja` needs nothing
of ours afterwards: stored in the tokenizer it renders the same text wherever the model is served.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from importlib import resources
from itertools import pairwise, takewhile
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerBase

from alignkit.config import TemplateConfig
from alignkit.data.encode.dates import with_date
from alignkit.data.encode.rendering import PLACEHOLDER, RowRefused, Segment, Template, first_difference, join_segments
from alignkit.data.encode.sandbox import bounded, is_marked
from alignkit.data.rows.conversation import Message
from alignkit.errors import TemplateError, did_you_mean

__all__ = ["SHIPPED", "RowRefused", "Segment", "Template", "adds_bos", "load_template"]

_FOLDER = resources.files("alignkit.conf.template")
SHIPPED = sorted(Path(entry.name).stem for entry in _FOLDER.iterdir() if entry.name.endswith(".jinja"))
OWN_END = {"chatml": "<|im_end|>"}  # the other shipped templates end in the tokenizer's eos

# a conversation of our own, in words no template has; each of PROBES shows EXTRA once one of its forms renders
ANSWER, EXTRA = "answer-4711", "extra-4711"
QUESTION, RESPONSE, OBSERVATION = Message("user", PLACEHOLDER), Message("assistant", ANSWER), Message("tool", EXTRA)


def _calling(name: str) -> Message:
    call = {"type": "function", "id": "call04711", "function": {"name": name, "arguments": {}}}
    return Message("assistant", "", tool_calls=(call,))


PROBES = {
    "system": [[Message("system", EXTRA), QUESTION, RESPONSE]],
    "tool": [[QUESTION, RESPONSE, OBSERVATION, RESPONSE], [QUESTION, _calling("other"), OBSERVATION, RESPONSE]],
    "tool_calls": [[QUESTION, _calling(EXTRA)]],
}


def load_template(
    config: TemplateConfig, tokenizer: PreTrainedTokenizerBase, *, now: datetime | None = None
) -> Template:
    """Bind the configured template to a tokenizer and tries it on a conversation of our own.

    Checked here: the generation prompt is what training has before the answer, every answer ends in one token, and
    no beginning or end token is doubled.

    Args:
        config: the section.
        tokenizer: of the model.
        now: what the template sees as the time from now on, if it asks for the date; None leaves it the clock.

    Raises:
        TemplateError: no such template, broken Jinja, no generation markers, or a check that failed.
    """
    where = f"template.file={config.file}" if config.file else f"template.name={config.name}"
    try:
        jinja = _source(config, tokenizer)
        jinja = jinja if now is None else with_date(jinja, now)
        name = Path(config.file).name if config.file else config.name
        with bounded():
            return _tried(Template(name, jinja, dict(tokenizer.special_tokens_map)), tokenizer)
    except RowRefused as error:
        broken = error.__cause__
        line = f":{broken.lineno}" if isinstance(broken, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(f"{where}{line}: {broken or error}") from error
    except TemplateError as error:
        raise TemplateError(f"{where}: {error}") from error


def shipped_template(name: str) -> str:
    """Read one of `SHIPPED`."""
    return _FOLDER.joinpath(f"{name}.jinja").read_text("utf-8")


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer begins a text with its bos token by default; then a template does, too."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _source(config: TemplateConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if config.file:
        return _with_ends(_marked_file(Path(config.file)), "", tokenizer)
    if config.name in SHIPPED:
        return _with_ends(shipped_template(config.name), OWN_END.get(config.name, ""), tokenizer)
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
    """Set `bos` and `end`, which shipped templates leave open, for this tokenizer; on line one, lines keep numbers."""
    bos = "bos_token" if adds_bos(tokenizer) else '""'
    end = json.dumps(own_end, ensure_ascii=False) if _is_token(own_end, tokenizer) else "eos_token"
    return f"{{%- set bos = {bos} -%}}{{%- set end = {end} -%}}{source}"


def _tried(draft: Template, tokenizer: PreTrainedTokenizerBase) -> Template:
    segments = draft.render([QUESTION, RESPONSE])
    prompt = join_segments(draft.render([QUESTION], add_generation_prompt=True))
    before = join_segments(takewhile(lambda segment: segment.message is None, segments))
    if before != prompt:
        raise TemplateError(
            f"the generation prompt is not the beginning of the trained text: {first_difference(prompt, before)}"
        )
    response = next((segment.text for segment in segments if segment.message == 1), "")
    if PLACEHOLDER not in prompt or ANSWER not in response:
        raise TemplateError("it leaves out what the user or the assistant says")
    lead, _, tail = response.partition(ANSWER)
    end = _end_token(tail, tokenizer)
    (end_id,) = _ids(end, tokenizer)
    template = replace(
        draft, end_token=end, end_id=end_id, response_lead=lead, prompt_suffix=prompt.rpartition(PLACEHOLDER)[2]
    )
    _check_boundaries(template, tokenizer)
    placed = replace(template, uses_input=True)
    with_input = join_segments(placed.render([Message("user", PLACEHOLDER, input=EXTRA)], add_generation_prompt=True))
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
    for messages in ([QUESTION, RESPONSE], [QUESTION, RESPONSE, QUESTION, RESPONSE]):
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
                words.append("" if EXTRA in join_segments(template.render(messages)) else "it leaves them out")
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
