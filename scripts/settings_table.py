"""Print the README's tables of settings, from the job classes themselves.

python scripts/settings_table.py sft           # all settings of a stage
python scripts/settings_table.py reward sft    # those that the second stage does not have, or has otherwise
"""

import sys
from enum import StrEnum

from omegaconf import MISSING

from alignkit.config import JOBS, settings


def table(stage: str, beside: str | None = None) -> str:
    """Markdown rows: setting, default, what it is; without those that the stage `beside` has too."""
    known = set(_rows(beside)) if beside else set()
    rows = [row for row in _rows(stage) if row not in known]
    return "\n".join(["| setting | default | what it is |", "|---|---|---|", *rows])


def _rows(stage: str) -> list[str]:
    lines = []
    for key, item in settings(JOBS[stage]):
        default = item.default_factory() if callable(item.default_factory) else item.default
        shown = "" if default == MISSING else f"`{_yaml(default)}`"
        lines.append(f"| `{key}` | {shown} | {item.metadata['help'].replace('|', chr(92) + '|')} |")
    return lines


def _yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, StrEnum) else value.value


if __name__ == "__main__":
    print(table(*(sys.argv[1:] or ["sft"])))
