"""What a check found, as `alignkit verify` prints it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: the check, in a word or two.
        verdict: `ok`, `FAIL`, or `-` if there was nothing to check.
        detail: what was found.
    """

    what: str
    verdict: str
    detail: str
