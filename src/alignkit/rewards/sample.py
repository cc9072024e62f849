"""A completion to score, and what every reward source is once it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from alignkit.data.rows.conversation import Conversation, Message


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion to score.

    Attributes:
        source: where its prompt came from, such as `file:N`.
        conversation: the prompt: messages, or the beginning of a plain text.
        completion: the text of the answer, without the end token.
        columns: the row that the prompt came in, for functions.
        reply: the answer as a message, where it has reasoning or calls.
    """

    source: str
    conversation: Conversation
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    reply: Message | None = None

    @property
    def prompt(self) -> str:
        """The last message of the user, or the beginning of the plain text."""
        return self.conversation.question()

    def __str__(self) -> str:
        """For messages."""
        return f"{self.source}, prompt {self.prompt[:60]!r}, completion {self.completion[:60]!r}"


class RewardScorer(Protocol):
    """A reward source, loaded.

    Attributes:
        num_cut: completions so far that it could not read whole.
    """

    num_cut: int

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        """Score samples: a number for each, or the `Failure` on one that it may skip.

        Raises:
            RewardError: it failed on a sample that it may not skip.
        """
