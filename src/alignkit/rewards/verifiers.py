"""Rewards that check a completion: 1 where it is right, 0 where it is not.

A worker calls them as it calls a function of the user's own, with the answers of the rows as texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from alignkit.errors import as_yaml

_ANY = float("inf")
# Reasoning between tags, of which the prompt may have brought the first, and something behind it.
_REASONED = r"(?s)\s*(<think>)?((?!</?think>).)+</think>\s*(?!\s)((?!</?think>).)+"
_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?\s*")
_LIKE_MATH = re.compile(r"[\d\\^]|^\s*[A-Za-z]\s*$")


@dataclass(frozen=True)
class Verifier:
    """What a verifier is given.

    Attributes:
        needs: keys of the source without which it checks nothing; one of them is enough.
        takes: all its keys.
        what: what earns 1.
    """

    needs: tuple[str, ...]
    takes: tuple[str, ...]
    what: str


VERIFIERS = {
    "math": Verifier(("answer",), ("answer",), "the completion's last expression, boxed or not, equals the answer"),
    "exact": Verifier(("answer",), ("answer",), "the completion is the answer, but for blanks around it"),
    "regex": Verifier(
        ("pattern",),
        ("pattern", "answer"),
        "pattern is found; with answer, what it finds last (its group) is the answer",
    ),
    "format": Verifier((), ("pattern",), "pattern fits the whole completion; without one, reasoning then an answer"),
    "length": Verifier(("min", "max"), ("min", "max"), "the completion has min to max characters"),
}
KEYS = tuple(dict.fromkeys(key for verifier in VERIFIERS.values() for key in verifier.takes))


def math(prompts: Sequence[str], completions: Sequence[str], answers: Sequence[str]) -> list[float]:
    from math_verify import verify

    # Its own time-outs need signals; that of the worker ends what takes too long.
    return [
        float(verify(_parsed_answer(answer), _parsed(completion), timeout_seconds=None))
        for completion, answer in zip(completions, answers, strict=True)
    ]


def math_answer(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Tell which texts `math` can take for an answer."""
    return [float(bool(_NUMBER.fullmatch(text)) or bool(_parsed_answer(text))) for text in completions]


@lru_cache(maxsize=4096)
def _parsed_answer(text: str) -> list[Any]:
    # LaTeX without its dollars is an answer, too; words are none, of which a parser would make a product of letters.
    return _parsed(text) or (_parsed(f"${text}$") if _LIKE_MATH.search(text) else [])


def _parsed(text: str) -> list[Any]:
    import logging

    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no time-out
    return list(parse(text, parsing_timeout=None))


def exact(prompts: Sequence[str], completions: Sequence[str], answers: Sequence[str]) -> list[float]:
    return [float(text.strip() == answer.strip()) for text, answer in zip(completions, answers, strict=True)]


def regex(
    prompts: Sequence[str], completions: Sequence[str], answers: Sequence[str] | None = None, *, pattern: str
) -> list[float]:
    found = [list(re.finditer(pattern, text)) for text in completions]
    if answers is None:
        return [float(bool(matches)) for matches in found]
    last = [matches[-1] if matches else None for matches in found]
    said = [match and (match[1] if match.re.groups else match[0]) for match in last]
    return [float((text or "").strip() == answer.strip()) for text, answer in zip(said, answers, strict=True)]


def format(prompts: Sequence[str], completions: Sequence[str], *, pattern: str = _REASONED) -> list[float]:
    return [float(bool(re.fullmatch(pattern, text))) for text in completions]


def length(prompts: Sequence[str], completions: Sequence[str], *, min: float = 0, max: float = _ANY) -> list[float]:
    return [float(min <= len(text) <= max) for text in completions]


def key_mistakes(item: Mapping[str, Any], setting: str, verifier: Verifier) -> list[str]:
    """List what is wrong with the keys of a source that are its verifier's, one line each."""
    name, given = item["verifier"], [key for key in KEYS if item.get(key) is not None]
    problems = [
        f"{setting}.{key} has no effect on verifier: {name}{_it_takes(verifier)}"
        for key in given
        if key not in verifier.takes
    ]
    if verifier.needs and not set(verifier.needs) & set(given):
        problems.append(
            f"{setting}.{' or .'.join(verifier.needs)} is missing: verifier: {name} gives 1 where {verifier.what}"
        )
    if "pattern" in given:
        try:
            re.compile(item["pattern"])
        except (re.error, TypeError) as error:
            problems.append(f"{setting}.pattern is {as_yaml(item['pattern'])}, no regular expression: {error}")
    sizes = [key for key in ("min", "max") if key in given]
    problems += [
        f"{setting}.{key} is {as_yaml(item[key])}: it must be a number of characters, 0 or more"
        for key in sizes
        if not isinstance(item[key], int) or isinstance(item[key], bool) or item[key] < 0
    ]
    if len(sizes) == 2 and not problems and item["min"] > item["max"]:
        problems.append(f"{setting}.min={item['min']} is more than {setting}.max={item['max']}")
    return problems


def _it_takes(verifier: Verifier) -> str:
    return f": it takes {', '.join(verifier.takes)}"
