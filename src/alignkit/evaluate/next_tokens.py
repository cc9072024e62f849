"""What a model says next, ready to be shown: likely tokens, or the tokens of a response."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Token:
    """One token at one place.

    Attributes:
        text: as it is shown.
        rank: 1 for the likeliest, before truncation; a tie goes to the smaller id.
        before: its probability under temperature and repetition penalty.
        after: what is left of it after truncation.
        entropy: in nats, of the distribution before truncation it was looked up in.
    """

    text: str
    rank: int
    before: float
    after: float
    entropy: float


@dataclass(frozen=True)
class NextTokens:
    """What one model says with one setting of the temperature.

    Attributes:
        label: model and temperature.
        tokens: the likeliest next tokens; or, of a walk, the tokens of the response.
        num_kept: tokens that truncation leaves.
        num_tokens: all of them.
        entropies: before and after truncation, in nats.
    """

    label: str
    tokens: list[Token]
    num_kept: int
    num_tokens: int
    entropies: tuple[float, float]
