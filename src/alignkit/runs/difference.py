"""In what two runs differ: settings, inputs, versions, figures, and the first step whose numbers are not the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from alignkit.json_files import read_objects
from alignkit.runs.manifest import flat
from alignkit.terminal import in_a_line

BOOKKEEPING = ("name", "resume", "overwrite")  # they name a run, and change nothing of it
_OF_TIME = ("second", "runtime")  # parts of the names of figures that no two runs share
_NOTHING = "–"


@dataclass
class Differences:
    """What differs between two runs, by its name: the value of the one and of the other.

    Attributes:
        settings: by dotted key.
        inputs: checksums of data, template, tokenizer, models and functions.
        versions: of the packages.
        figures: of the results.
        first_step: the first logged step whose figures differ, times left out, and the figure; None where all agree.
    """

    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    inputs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    versions: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    figures: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    first_step: tuple[int, str, Any, Any] | None = None

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    def lines(self) -> Iterator[str]:
        """Say what differs, a line each below a title."""
        for title, pairs in asdict(self).items():
            if isinstance(pairs, dict) and pairs:
                yield title.replace("_", " ")
                yield from (
                    f"  {in_a_line(key)}: {_value(mine)} → {_value(theirs)}" for key, (mine, theirs) in pairs.items()
                )
        if self.first_step is None:
            yield "every logged step agrees"
        else:
            step, key, mine, theirs = self.first_step
            yield f"the first step that differs is {step}: {in_a_line(key)} is {_value(mine)} → {_value(theirs)}"


def differences(one: Path, manifest: Mapping[str, Any], other: Path, others: Mapping[str, Any]) -> Differences:
    """Compare two runs.

    Args:
        one: the folder of the first.
        manifest: its record.
        other: the folder of the second.
        others: its record.

    Raises:
        DamagedFile: metrics cannot be read.
    """
    settings = _differing(manifest.get("job", {}), others.get("job", {}))
    return Differences(
        settings={key: values for key, values in settings.items() if key not in BOOKKEEPING},
        inputs=_differing(manifest.get("inputs", {}), others.get("inputs", {})),
        versions=_differing(manifest.get("versions", {}), others.get("versions", {})),
        figures={
            name: values
            for name, values in _differing(manifest.get("result", {}), others.get("result", {})).items()
            if not _is_time(name)
        },
        first_step=first_difference(one / "metrics.jsonl", other / "metrics.jsonl"),
    )


def first_difference(one: Path, other: Path) -> tuple[int, str, Any, Any] | None:
    """Find the first line of two files of metrics that differs, but for times.

    Returns:
        Its step, the name of the figure, and its two values; None where all agree.

    Raises:
        DamagedFile: a file cannot be read.
    """
    empty: dict[str, Any] = {}
    for mine, theirs in zip_longest(_untimed(one), _untimed(other), fillvalue=empty):
        step = mine.get("step", theirs.get("step", 0))
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            values = mine.get(key, _NOTHING), theirs.get(key, _NOTHING)
            if json.dumps(values[0]) != json.dumps(values[1]):  # by their text: NaN is NaN
                return step, key, *values
    return None


def _untimed(path: Path) -> Iterator[dict[str, Any]]:
    for entry in read_objects(path) if path.is_file() else ():
        yield {key: value for key, value in entry.items() if not _is_time(key)}


def _value(value: Any) -> str:
    return in_a_line(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _is_time(name: str) -> bool:
    return any(part in name for part in _OF_TIME)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    mine, theirs = dict(flat(one)), dict(flat(other))
    keys = [*mine, *(key for key in theirs if key not in mine)]
    pairs = {key: (mine.get(key, _NOTHING), theirs.get(key, _NOTHING)) for key in keys}
    return {key: pair for key, pair in pairs.items() if json.dumps(pair[0]) != json.dumps(pair[1])}
