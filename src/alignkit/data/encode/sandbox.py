"""One chat template rendered once: the text that transformers renders, and a bound on what a stranger's may cost."""

from __future__ import annotations

import os
import re
import resource
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2.meta
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from alignkit.errors import TemplateError

MAX_SECONDS = 5.0  # of processor time, so that a busy machine refuses nothing; for every started hundred messages
MAX_BYTES = 2**31  # on top of what the process holds
MAX_CHARS = 1_000_000  # a template may write around its messages

# what a template can stumble over: its own words, a missing field, a type it did not expect
RENDER_ERRORS = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError)

Span = tuple[int, int]


@lru_cache
def is_marked(jinja: str) -> bool:
    """Tell whether the template marks what the assistant says with `{% generation %}` blocks."""
    return re.search(r"{%-?\s*generation\s*-?%}", jinja) is not None


@lru_cache
def variables_of(jinja: str) -> frozenset[str]:
    """Return the names that a template asks for.

    Raises:
        jinja2.TemplateSyntaxError: it is no template.
    """
    environment = _compile_jinja_template(jinja).environment
    return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(jinja)))


def render_chat(
    jinja: str,
    messages: Sequence[dict[str, Any]],
    *,
    variables: Mapping[str, Any],
    tools: Sequence[dict[str, Any]] = (),
    add_generation_prompt: bool,
    find_marks: bool = True,
) -> tuple[str, list[Span]]:
    """Render what `tokenizer.apply_chat_template(tokenize=False)` gives, and find the generation blocks in it.

    Args:
        jinja: the chat template.
        messages: dicts with `role`, `content` and what else the template reads.
        variables: what the template sees beside the messages (`bos_token`, `eos_token`, …).
        tools: functions that may be called, each as a JSON schema.
        add_generation_prompt: end with the beginning of an assistant turn.
        find_marks: look for the blocks at all, which takes time.

    Returns:
        The text, and `(start, stop)` in characters for every generation block, in order; blocks that touch are one.

    Raises:
        TemplateError: more text than `MAX_CHARS` around the messages.
        Exception: one of `RENDER_ERRORS`, as the template raised it.
    """
    rendered: Any = render_jinja_template(
        conversations=[list(messages)],
        tools=list(tools) or None,
        chat_template=jinja,
        add_generation_prompt=add_generation_prompt,
        return_assistant_tokens_mask=find_marks and is_marked(jinja),
        **variables,
    )
    text: str = rendered[0][0]
    if len(text) > MAX_CHARS and len(text) > MAX_CHARS + 10 * sum(len(str(m)) for m in [*messages, *tools]):
        raise TemplateError(f"the chat template writes {len(text):,} characters: do you trust its source?")
    blocks: list[Span] = rendered[1][0] if rendered[1] else []
    spans: list[Span] = []
    for start, stop in blocks:
        start = spans.pop()[0] if spans and spans[-1][1] == start else start
        spans.append((start, stop))
    return text, spans


@contextmanager
def bounded(num_messages: int = 1) -> Iterator[None]:
    """Bound time and memory of the rendering inside: the sandbox of transformers stops escapes, not `'a' * 5e8`.

    The limits are the operating system's, because a template has more ways to be large than a list of forbidden
    words could name. Time is bounded in the main thread only, memory where the system tells its use (Linux).

    Raises:
        TemplateError: a limit was reached.
    """
    seconds = MAX_SECONDS * (1 + num_messages // 100)
    try:
        with _memory_limit(MAX_BYTES), _time_limit(seconds):
            yield
    except _TimeIsUp:
        raise TemplateError(
            f"the chat template renders for more than {seconds:.0f} s: do you trust its source?"
        ) from None
    except MemoryError:
        gigabytes = f"{MAX_BYTES / 2**30:g} GiB"
        raise TemplateError(
            f"the chat template asks for more than {gigabytes} of memory: do you trust its source?"
        ) from None


class _TimeIsUp(BaseException):
    """Not an Exception: Jinja swallows those while it folds constants."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread can be interrupted
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeIsUp

    handler = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.1)  # again and again, should the first be swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


@contextmanager
def _memory_limit(num_bytes: int) -> Iterator[None]:
    usage = Path("/proc/self/statm")
    if not usage.exists():
        yield
        return
    held = int(usage.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceilings = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([held + num_bytes, *ceilings]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
