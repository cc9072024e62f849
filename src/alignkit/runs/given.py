"""What a run was given: its settings, where each came from, and the command line. No secret is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MASKED = "***"
_SECRET = re.compile(r"token|password|passwd|secret|key|credential", re.IGNORECASE)
# Words of settings that hold one of those, and are none.
_HARMLESS = re.compile(r"new_tokens|control_tokens|_token_|token_type|num_tokens|tokens_|tokenizer|keys?word")


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
    """Mask the values of `key=value` words and of `--key value` flags whose key names a secret."""
    masked: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals:
            masked.append(f"{key}={_masked_text(value)}" if _names_secret(key) else word)
        elif masked and masked[-1].startswith("--") and "=" not in masked[-1] and _names_secret(masked[-1]):
            masked.append(_masked_text(word))
        else:
            masked.append(word)
    return masked


def mask_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Mask the texts among nested settings whose key names a secret; references to the environment stay."""
    masked: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            masked[key] = mask_settings(value)
        elif isinstance(value, str) and _names_secret(str(key)):
            masked[key] = _masked_text(value)
        else:
            masked[key] = value
    return masked


def _names_secret(key: str) -> bool:
    leaf = key.rsplit(".", 1)[-1]
    return _SECRET.search(leaf) is not None and _HARMLESS.search(leaf) is None


def _masked_text(value: str) -> str:
    return value if value.startswith("${") else MASKED
