"""Print the README's table of settings, from the job classes themselves: python scripts/settings_table.py [STAGE]."""

import sys
from enum import StrEnum

from omegaconf import MISSING

from alignkit.config import JOBS, settings


def table(stage: str) -> str:
    """Markdown rows: setting, default, what it is."""
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for key, item in settings(JOBS[stage]):
        default = item.default_factory() if callable(item.default_factory) else item.default
        shown = "" if default == MISSING else f"`{_yaml(default)}`"
        lines.append(f"| `{key}` | {shown} | {item.metadata['help'].replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def _yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, StrEnum) else value.value


if __name__ == "__main__":
    print(table(sys.argv[1] if len(sys.argv) > 1 else "sft"))
