"""Print a table of a job's settings, from the job as it is composed when nothing but the required settings is given.

python scripts/settings_table.py sft           # all settings of a stage, or of any other command
python scripts/settings_table.py reward sft    # those that the second one does not have, or has otherwise
"""

import re
import sys
from collections.abc import Iterator
from enum import StrEnum
from importlib import resources

from alignkit.config import MISSING
from alignkit.jobs import JOBS, settings
from alignkit.launch import compose_job


def table(stage: str, beside: str | None = None) -> str:
    """Markdown rows: setting, default, what it is; without those that the stage `beside` has too."""
    known = set(_rows(beside)) if beside else set()
    rows = [row for row in _rows(stage) if row not in known]
    return "\n".join(["| setting | default | what it is |", "|---|---|---|", *rows])


def _rows(stage: str) -> Iterator[str]:
    missing = [key for key, _, value in settings(JOBS[stage]()) if value == MISSING]
    for key, item, value in settings(compose_job(stage, [f"{key}=given" for key in missing])):
        yield _row(key, item.metadata["help"], _default(key, value, missing))
        for name, argument in value.items() if key == "train" else ():
            yield _row(f"train.{name}", _reason(stage, name), f"`{_yaml(argument)}`")


def _default(key: str, value: object, missing: list[str]) -> str:
    if key == "train":
        return "the rows below"
    return "required" if key in missing else f"`{_yaml(value)}`"


def _row(key: str, help: str, default: str) -> str:
    return f"| `{key}` | {default} | {help.replace('|', chr(92) + '|')} |"


def _reason(stage: str, argument: str) -> str:
    """The comment behind an argument in conf/<stage>.yaml."""
    text = resources.files("alignkit.conf").joinpath(f"{stage}.yaml").read_text("utf-8")
    found = re.search(rf"^  {argument}: \S+ # (.+)$", text, re.MULTILINE)
    assert found, f"train.{argument} of {stage} has no reason"
    return found[1]


def _yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, StrEnum) else value.value


if __name__ == "__main__":
    print(table(*(sys.argv[1:] or ["sft"])))
