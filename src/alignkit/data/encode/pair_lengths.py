"""A pair that is longer than the model may see: dropped, or both sides cut alike so that the comparison stays fair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.choices import Overlength
from alignkit.data.rows.preferences import IDENTICAL

EQUAL_WHEN_CUT = "equal_when_cut"


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair as the trainer gets it: `prompt_ids` + either side is what SFT would train on.

    Attributes:
        prompt_ids: what inference feeds.
        chosen_ids: the preferred response, end token included.
        rejected_ids: the other response.
        chosen_masked: how many tokens the chosen response begins with that carry no loss: its reasoning.
        rejected_masked: the same of the other response.
        margin: by how much the chosen one is better; None where the row does not say.
        notes: what happened to the row that does not change its fate.
        template_kwargs: the row's own arguments of the template.
        cuts: where tokens were left out: the index of the token that now follows, by the name of the list of tokens.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_masked: int = 0
    rejected_masked: int = 0
    margin: float | None = None
    notes: tuple[str, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cuts: Mapping[str, int] = field(default_factory=dict)

    @property
    def scored(self) -> tuple[list[int], list[int]]:
        """The tokens of both responses that carry loss."""
        return self.chosen_ids[self.chosen_masked :], self.rejected_ids[self.rejected_masked :]


def apply_pair_length(
    pair: EncodedPair, *, prefix_length: int, suffix_length: int, max_length: int, policy: Overlength
) -> tuple[EncodedPair | None, str]:
    """Hold the prompt with its longer side to `max_length` tokens.

    Args:
        pair: the whole pair.
        prefix_length: tokens that begin the prompt before the first user's content.
        suffix_length: tokens that every prompt ends with, such as the response's heading.
        max_length: most tokens in a prompt and one side.
        policy: `drop`; `keep_end`, which cuts the one prompt after its prefix and before its suffix by what the longer
            side needs; or `keep_start`, which cuts the end off both sides.

    Returns:
        The pair, or None where it is dropped; and why: empty (it fits), `too_long`, `identical`, `equal_when_cut` or
        `nothing_to_learn` (dropped), `cut_start`, or `cut_end` (a response lost its end token).
    """
    scored, other = pair.scored
    if scored == other:  # texts that differ, and not to this tokenizer, or not in what carries loss
        return None, IDENTICAL
    num_prompt = len(pair.prompt_ids)
    excess = num_prompt + max(len(pair.chosen_ids), len(pair.rejected_ids)) - max_length
    if excess <= 0:
        return pair, ""
    if policy is Overlength.keep_end and excess <= num_prompt - prefix_length - suffix_length:
        prompt = pair.prompt_ids[:prefix_length] + pair.prompt_ids[prefix_length + excess :]
        return replace(pair, prompt_ids=prompt, cuts={"prompt_ids": prefix_length}), "cut_start"
    room = max_length - num_prompt
    if policy is not Overlength.keep_start or room <= 0:
        return None, "too_long"
    cuts = {side: room for side in ("chosen_ids", "rejected_ids") if len(getattr(pair, side)) > room}
    cut = replace(pair, chosen_ids=pair.chosen_ids[:room], rejected_ids=pair.rejected_ids[:room], cuts=cuts)
    scored, other = cut.scored
    if not scored or not other:
        return None, "nothing_to_learn"
    return (None, EQUAL_WHEN_CUT) if scored == other else (cut, "cut_end")
