"""Chat templates: found, bound to a tokenizer, and tried before anything is trained.

A template is bound to one tokenizer when it is loaded: its end token is chosen, the mistakes a template can have are
found on a conversation of our own, and what it leaves out or refuses is written down. `Template.jinja` needs nothing
of ours afterwards: stored in the tokenizer it renders the same text wherever the model is served.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from alignkit.config import TemplateConfig
from alignkit.data.encode.dates import with_date
from alignkit.data.encode.probes import ANSWER, QUESTION, is_token, probed, token_ids
from alignkit.data.encode.rendering import RowRefused, Template
from alignkit.data.encode.sandbox import bounded, variables_of
from alignkit.data.encode.trained_turns import trained_turn
from alignkit.data.rows.conversation import Conversation
from alignkit.errors import TemplateError, did_you_mean

__all__ = ["SHIPPED", "RowRefused", "Template", "adds_bos", "load_template"]

_FOLDER = resources.files("alignkit.conf.template")
SHIPPED = sorted(Path(entry.name).stem for entry in _FOLDER.iterdir() if entry.name.endswith(".jinja"))
OURS = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "strftime_now"}  # no template.kwargs

OWN_END = {"chatml": "<|im_end|>"}  # the other shipped templates end in the tokenizer's eos


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

    A tokenizer with neither a pad nor an eos token pads with the template's end token from here on.

    Raises:
        TemplateError: no such template, broken Jinja, no end token, or a check that failed.
    """
    where = f"template.file={config.file}" if config.file else f"template.name={config.name}"
    try:
        jinja = _source(config, tokenizer)
        jinja = jinja if now is None else with_date(jinja, now)
        name = Path(config.file).name if config.file else config.name
        with bounded():
            template = _bound(_draft(name, jinja, config.kwargs, tokenizer), tokenizer)
        if tokenizer.pad_token is None:  # nor an eos token, or it would pad with that
            tokenizer.pad_token = template.end_token
        return template
    except RowRefused as error:
        broken = error.__cause__
        line = f":{broken.lineno}" if isinstance(broken, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(f"{where}{line}: {broken or error}") from error
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{where}:{error.lineno}: {error}") from error
    except TemplateError as error:
        raise TemplateError(*(f"{where}: {problem}" for problem in error.problems)) from error


def _draft(name: str, jinja: str, kwargs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Template:
    reads = variables_of(jinja) - OURS
    problems = [
        f"it never reads template.kwargs.{key}{did_you_mean(key, reads) or '; leave it out'}"
        for key in kwargs
        if key not in reads
    ]
    if problems:
        raise TemplateError(*problems)
    return Template(name, jinja, {**tokenizer.special_tokens_map, **kwargs}, reads, is_shipped=name in SHIPPED)


def shipped_template(name: str) -> str:
    """Read one of `SHIPPED`."""
    return _FOLDER.joinpath(f"{name}.jinja").read_text("utf-8")


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer begins a text with its bos token by default; then a template does, too."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _source(config: TemplateConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if config.file:
        return _with_ends(_file(Path(config.file)), "", tokenizer)
    if config.name in SHIPPED:
        return _with_ends(shipped_template(config.name), OWN_END.get(config.name, ""), tokenizer)
    if config.name != "native":
        suggestion = did_you_mean(config.name, [*SHIPPED, "native"])
        raise TemplateError(f"no such template{suggestion}; there are {', '.join(SHIPPED)} and native")
    if not tokenizer.chat_template:
        raise TemplateError(f"the tokenizer has no chat template of its own: choose one of {', '.join(SHIPPED)}")
    return tokenizer.get_chat_template()


def _file(path: Path) -> str:
    if not path.is_file():
        raise TemplateError("no such file")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error


def _with_ends(source: str, own_end: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Set `bos` and `end`, which shipped templates leave open, for this tokenizer; on line one, lines keep numbers."""
    bos = "bos_token" if adds_bos(tokenizer) else '""'
    has_own = is_token(own_end, tokenizer)
    if not has_own and tokenizer.eos_token is None and "end" in variables_of(source):
        raise TemplateError(
            "a turn ends in the tokenizer's eos token, and it has none: "
            + "; or ".join([*_with_own_end(tokenizer), "name a token as eos_token in its tokenizer_config.json"])
        )
    end = json.dumps(own_end, ensure_ascii=False) if has_own else "eos_token"
    return f"{{%- set bos = {bos} -%}}{{%- set end = {end} -%}}{source}"


def _with_own_end(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Name the templates that bring an end which this tokenizer has as one token."""
    return [f"template={name} ends it in {end}" for name, end in OWN_END.items() if is_token(end, tokenizer)]


def _bound(draft: Template, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Try a template on conversations of our own, and write down what it does."""
    template = probed(draft, tokenizer)
    _check_boundaries(template, tokenizer)
    return template


def _check_boundaries(template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, template.end_id}
    for messages in ((QUESTION, ANSWER), (QUESTION, ANSWER, QUESTION, ANSWER)):
        with suppress(RowRefused):  # a template may be for single turns
            turn = trained_turn(template, Conversation(messages), len(messages) - 1)
            ids = [*token_ids(turn.prompt, tokenizer), *token_ids(turn.response, tokenizer)]
            doubled = [a for a, b in pairwise(ids) if a == b and a in ends]
            if doubled:
                raise TemplateError(f"it writes {tokenizer.decode(doubled[:1])} twice in a row")
