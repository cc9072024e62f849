"""A value that its setting cannot take, said with what it takes and how that is written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alignkit.errors import as_yaml, did_you_mean
from alignkit.quoting import as_element, typed_word

_WANTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
LISTS = {"list[float]": "a list of numbers", "list[str]": "a list of texts", "list[Any]": "a list of sources"}
_EXAMPLES = {
    "columns": "{input: question}",
    "kwargs": "{enable_thinking: false}",
    "config": "{model_type: gpt2}",
    "lora": "{r: 8}",
    "train": "{max_steps: 100}",
}


def wrong_type(dotted: str, key: str, value: Any, section: Any, *, typed: bool) -> Iterator[str]:
    """Say what is wrong with the value of a setting, with what it takes and how that is written.

    Args:
        dotted: the setting, as it is typed.
        key: its name in the section.
        value: as it was given.
        section: the dataclass that has it.
        typed: it was typed as a word, not in a file.
    """
    if isinstance(value, str) and "${" in value:
        return
    default = getattr(section, key)
    if names := _names_of(section, key):
        if value not in names and not (value is None and default is None):
            yield f"{dotted} is {as_yaml(value)}: choose {', '.join(names)}{did_you_mean(str(value), names)}"
        return
    (kind,) = [str(item.type) for item in dataclasses.fields(section) if item.name == key]
    if value in (None, "") and default == "???":
        yield f"{dotted} is empty: give it as {dotted}=…"
        return
    try:
        _schema_of(section.__class__)[key] = value
    except OmegaConfBaseException as error:
        yield f"{dotted} is {_shown(value)}: {_wanted(dotted, kind, value, typed=typed) or str(error).splitlines()[0]}"


@cache
def _schema_of(kind: type) -> DictConfig:
    """What takes a value of the right type only; made once, since to make one takes longer than all the rest."""
    schema: DictConfig = OmegaConf.structured(kind)
    return schema


def _names_of(section: Any, key: str) -> list[str]:
    """The names that a setting may have; none where it may have any value."""
    kind = get_type_hints(type(section))[key]
    kinds = (kind, *get_args(kind))
    return [str(member) for one in kinds if isinstance(one, type) and issubclass(one, StrEnum) for member in one]


def _shown(value: Any) -> str:
    return "empty" if value is None else as_yaml(value)


def _wanted(dotted: str, kind: str, value: Any, *, typed: bool) -> str:
    """What a setting of a kind takes, with the value as it may have been meant."""
    kind = kind.removesuffix(" | None")
    if kind in LISTS:
        is_one = not isinstance(value, list) and value is not None and (kind != "list[float]" or _is_number(value))
        what, meant = LISTS[kind], f"[{_elements(dotted, value)}]" if is_one else ""
    elif kind.startswith("dict"):
        pairs = isinstance(value, str) and re.fullmatch(r"\s*[\w.]+:\s*\S[^,]*(,\s*[\w.]+:\s*\S[^,]*)*", value)
        spaced = re.sub(r":\s*", ": ", str(value))
        what, meant = "keys with values", f"{{{spaced}}}" if pairs else _EXAMPLES.get(dotted.split(".")[-1], "")
    else:
        return f"it must be {_WANTED[kind]}" if kind in _WANTED else ""
    if not meant:
        return f"it must be {what}"
    return f"it must be {what}: write {typed_word(dotted, meant) if typed else f'{dotted}: {meant}'}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _elements(dotted: str, value: Any) -> str:
    if dotted != "reward":
        parts = value.split(",") if isinstance(value, str) and value.strip(", ") else [str(value)]
        return ", ".join(as_element(part.strip() or part) for part in parts)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_element(str(item))}" for key, item in value.items()) + "}"
    return _source_of_text(str(value))


def _source_of_text(text: str) -> str:
    """Write the source of a reward that a text stands for: `file.py:function`, `classifier#label`, or a run."""
    before, mark, label = text.partition("#")
    if mark:
        return f"{{classifier: {as_element(before)}, label: {as_element(label)}}}"
    return f"{{{'function' if ':' in text else 'model'}: {as_element(text)}}}"
