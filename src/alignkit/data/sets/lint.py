"""What is odd about pairs: some teach nothing, repeat or contradict another, or length alone predicts the label."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignkit.data.encode.pair_lengths import EQUAL_WHEN_CUT
from alignkit.data.rows.conversation import Message
from alignkit.data.rows.preferences import IDENTICAL, PROMPTS_DIFFER, Preference
from alignkit.data.sets.items import SourcedItem
from alignkit.data.sets.ledger import NUM_EXAMPLES, Ledger

LONGEST_SHARE = 0.65  # of pairs in which the longer side wins (or loses), above which length is worth a warning

EMPTY = "empty"
_EMPTY_REASONS = ("is empty", "is null", "has an empty turn")  # how the reasons of malformed rows end

_WORDS = {
    EMPTY: "have an empty or missing text",
    IDENTICAL: "have identical sides",
    PROMPTS_DIFFER: "have a different prompt on each side",
    EQUAL_WHEN_CUT: "are made equal by truncation",
}
_REPEATED = "repeat an earlier pair"
_CONTRADICTED = "contradict an earlier pair"


@dataclass(frozen=True)
class Lint:
    """What was found in the pairs of all sets.

    Attributes:
        dropped: sources of the pairs that were left out, by reason: `identical`, `prompts_differ`, `equal_when_cut`, or
            `empty` for a text that is.
        duplicates: sources of pairs that repeat an earlier one, each with the source of that one.
        contradictions: sources of pairs that contradict an earlier one, each with the source of that one.
        num_pairs: pairs that are trained on or held out.
        longer_chosen: share of these in which the chosen side has more tokens, a tie counted half.
        length_auc: chance that the difference in length (chosen − rejected) tells a pair from its mirror image, drawn
            from all pairs: above 0.5 the longer side tends to win by more tokens than it loses by.
    """

    dropped: Mapping[str, list[str]] = field(default_factory=dict)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    contradictions: list[tuple[str, str]] = field(default_factory=list)
    num_pairs: int = 0
    longer_chosen: float = 0.5
    length_auc: float = 0.5

    @property
    def length_accuracy(self) -> float:
        """Accuracy of the better one of the rules "longer wins" and "shorter wins"."""
        return max(self.longer_chosen, 1 - self.longer_chosen)

    def lines(self) -> list[str]:
        """Return what `alignkit inspect` shows, one line each."""
        lines = [_counted(self.dropped.get(reason, []), words) for reason, words in _WORDS.items()]
        lines.append(_counted(self._repeats(), _REPEATED))
        lines.append(_counted(self._contraries(), _CONTRADICTED))
        if self.num_pairs:
            lines.append(
                f"length: the longer side is chosen in {self.longer_chosen:.1%} of {self.num_pairs:,} pairs, so length "
                f"alone predicts {self.length_accuracy:.1%} of the labels (AUC of the difference {self.length_auc:.3f})"
            )
        return lines

    def warning(self) -> str | None:
        """Return one line to show before training; None where nothing is wrong."""
        told = []
        if self.contradictions:
            told.append(_counted(self._contraries(), _CONTRADICTED))
        if self.duplicates:
            told.append(_counted(self._repeats(), _REPEATED))
        if self.length_accuracy > LONGEST_SHARE:
            side = "longer" if self.longer_chosen > 0.5 else "shorter"
            told.append(f"the {side} side is chosen in {self.length_accuracy:.1%}: length alone predicts the label")
        return f"pairs: {'; '.join(told)}" if told else None

    def _repeats(self) -> list[str]:
        return [f"{source} as {first}" for source, first in self.duplicates]

    def _contraries(self) -> list[str]:
        return [f"{source} against {first}" for source, first in self.contradictions]


def lint(
    rows: Mapping[str, Sequence[SourcedItem[Preference]]],
    ledger: Ledger,
    lengths: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Lint:
    """Look for what is odd about pairs.

    Args:
        rows: of each set, as they were read; copies by weight are not looked at.
        ledger: with the fate of each.
        lengths: tokens of the chosen and of the rejected sides that were kept, for each set.
    """
    dropped: dict[str, list[str]] = defaultdict(list)
    for row in ledger.rows:
        reason = EMPTY if row.reason.endswith(_EMPTY_REASONS) else row.reason
        if reason in _WORDS:
            dropped[reason].append(row.source)
    duplicates, contradictions = _repeated([row for named in rows.values() for row in named if not row.is_copy])
    longer_by = [a - b for chosen, rejected in lengths for a, b in zip(chosen, rejected, strict=True)]
    return Lint(
        dict(dropped), duplicates, contradictions, len(longer_by), _share_above_zero(longer_by), _auc(longer_by)
    )


def _repeated(rows: Sequence[SourcedItem[Preference]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Find duplicates and contradictions: sources of a row, and of the first one that it repeats or contradicts."""
    duplicates, contradictions = [], []
    first: dict[tuple[str, ...], str] = {}
    for row in rows:
        pair = row.item
        prompt = f"{pair.prompt_key()}\x1f{pair.prompt.tools}"
        chosen, rejected = _key(pair.chosen), _key(pair.rejected)
        if (contrary := first.get((prompt, rejected, chosen))) is not None:
            contradictions.append((row.source, contrary))
        source = first.setdefault((prompt, chosen, rejected), row.source)
        if source != row.source:
            duplicates.append((row.source, source))
    return duplicates, contradictions


def _key(message: Message) -> str:
    return f"{message.reasoning}\x1f{message.content}\x1f{message.tool_calls}"


def _share_above_zero(values: Sequence[int]) -> float:
    return sum((value > 0) + (value == 0) / 2 for value in values) / len(values) if values else 0.5


def _auc(values: Sequence[int]) -> float:
    """P(x > −y) + P(x = −y) / 2 for x and y drawn from the values: the area under the curve of x against −x."""
    if not values:
        return 0.5
    ordered = sorted(values)
    above = sum(2 * len(ordered) - bisect_left(ordered, -value) - bisect_right(ordered, -value) for value in ordered)
    return above / (2 * len(ordered) ** 2)


def _counted(sources: Sequence[str], words: str) -> str:
    shown = [*sources[:NUM_EXAMPLES], *(["…"] if len(sources) > NUM_EXAMPLES else [])]
    return f"{len(sources):,} {words}" + (f" ({', '.join(shown)})" if shown else "")
