"""Where each setting of a job came from: a group's option, a file, or the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from alignkit import mistakes
from alignkit.runs.manifest import flat


def origins(
    settings: Mapping[str, Any],
    *,
    choices: Mapping[str, Any],
    overlays: Mapping[str, Mapping[str, Any]],
    words: Sequence[str],
    config_dir: Path | None = None,
) -> dict[str, str]:
    """Say where each setting came from; a setting that is not named has its default.

    Args:
        settings: as composed, nested.
        choices: the option of each group.
        overlays: the contents of the `config=` files, in the order they win.
        words: `key=value` of the command line.
        config_dir: the user's own group options.

    Returns:
        `model=tiny_gpt2`, `my.yaml` or `command line`, by dotted key.
    """
    found: dict[str, str] = {}
    keys = [key for key, _ in flat(settings)]
    for origin, given in _layers(choices, overlays, words, config_dir):
        for key in keys:
            if any(key == one or key.startswith(f"{one}.") for one in given):
                found[key] = origin
    return found


def _layers(
    choices: Mapping[str, Any], overlays: Mapping[str, Mapping[str, Any]], words: Sequence[str], config_dir: Path | None
) -> Iterator[tuple[str, list[str]]]:
    """The keys that each layer gives, from the first to the one that wins."""
    for group in mistakes.GROUPS:
        option = choices.get(group)
        if isinstance(option, str):
            yield f"{group}={option}", [key for key, _ in flat({group: _option(group, option, config_dir)})]
    for file, content in overlays.items():
        chosen = {key for key, value in content.items() if key in mistakes.GROUPS and isinstance(value, str)}
        yield file, [key for key, _ in flat(content) if key not in chosen]
    yield "command line", [key for word in words for key in mistakes.keys_of_word(word)]


def _option(group: str, option: str, config_dir: Path | None) -> Any:
    own = config_dir / group / f"{option}.yaml" if config_dir else None
    if own is not None and own.is_file():
        return mistakes.read_yaml(own)
    with resources.as_file(resources.files("alignkit.conf").joinpath(group, f"{option}.yaml")) as shipped:
        return mistakes.read_yaml(shipped) if shipped.is_file() else {}
