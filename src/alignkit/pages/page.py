"""A page from its template: one file with its style and its scripts, which loads nothing and runs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alignkit.terminal import printable

# What JSON may hold and a script element may not: these begin its end tag, a comment, or a new line.
_UNSAFE = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
_PACKAGE = resources.files("alignkit.pages")


def render(template: str, *, scripts: Sequence[str] = (), styles: Sequence[str] = (), **values: Any) -> str:
    """Render a page.

    Every value that is not markup of a template is escaped, and its control characters are written out. The policy of
    the page lets its own scripts run, by their checksums, and no other.

    Args:
        template: its name below `templates/`.
        scripts: files of this package to run, in their order.
        styles: files of this package, before the style that all pages have.
        **values: of the template.
    """
    sources = [_read(name) for name in scripts]
    style = "\n".join(map(_read, [*styles, "templates/page.css"]))
    page = _environment().get_template(template)
    return page.render(
        scripts=[Markup(text) for text in sources], policy=_policy(sources), style=Markup(style), **values
    )


def json_text(value: Any) -> Markup:
    """Write JSON that cannot close the script element it stands in.

    Raises:
        ValueError: a number is not finite.
    """
    return Markup(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("alignkit.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["json_text"] = json_text
    return environment


def _policy(scripts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"


@cache
def _read(name: str) -> str:
    return _PACKAGE.joinpath(name).read_text(encoding="utf-8")
