"""What a run was given: its settings, where each came from, and the command line. No secret is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MASKED = "***"
_NESTED = re.compile(r"""([\w.-]+)(\s*:\s*)('[^']*'|"[^"]*"|[^,{}\[\]]+)""")  # `key: value` inside a value
_SECRET = re.compile(r"token|password|passwd|secret|key|credential", re.IGNORECASE)
# Words of settings that hold one of those, and are none.
_HARMLESS = re.compile(r"new_tokens|control_tokens|_token_|token_type|num_tokens|tokens_|tokenizer|keys?word")

_NAMES_COLUMNS = frozenset({"columns"})  # from a field to a column of the data: neither is a secret


@dataclass(frozen=True)
class Given:
    """Settings as a person gave them.

    Attributes:
        settings: interpolations unresolved, so that `${oc.env:TOKEN}` stays what it is.
        origins: where each setting came from, by its dotted key; one that is not named has its default.
        command: the command line, its secrets masked; empty where there was none, as in a notebook.
        now: the date that templates see, of a run that is made again; None is the clock.
    """

    settings: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()
    now: datetime | None = None


def mask_words(words: Sequence[str]) -> list[str]:
    """Mask the values whose key names a secret: of `key=value` words, `key: value` in them, and `--key value` flags."""
    masked: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and _NAMES_COLUMNS.intersection(key.split(".")):
            masked.append(word)
        elif equals:
            masked.append(f"{key}={_masked_text(value)}" if _names_secret(key) else key + equals + _masked_parts(value))
        elif masked and masked[-1].startswith("--") and "=" not in masked[-1] and _names_secret(masked[-1]):
            masked.append(_masked_text(word))
        else:
            masked.append(word)
    return masked


def mask_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Mask the texts among nested settings whose key names a secret; references to the environment stay."""
    masked: dict[str, Any] = _masked_value(values, is_secret=False)
    return masked


def _masked_value(value: Any, *, is_secret: bool) -> Any:
    if isinstance(value, Mapping):
        return {
            k: v if k in _NAMES_COLUMNS else _masked_value(v, is_secret=is_secret or _names_secret(str(k)))
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_masked_value(item, is_secret=is_secret) for item in value]
    return _masked_text(value) if is_secret and isinstance(value, str) else value


def _masked_parts(value: str) -> str:
    return _NESTED.sub(
        lambda found: found[1] + found[2] + _masked_text(found[3]) if _names_secret(found[1]) else found[0], value
    )


def texts(value: Any) -> Iterator[str]:
    """Go through the texts in a value of a setting, lists and mappings in it included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from texts(part)


def _names_secret(key: str) -> bool:
    leaf = key.rsplit(".", 1)[-1]
    return _SECRET.search(leaf) is not None and _HARMLESS.search(leaf) is None


def _masked_text(value: str) -> str:
    return value if value.startswith("${") else MASKED
