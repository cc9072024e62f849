"""From the `data` section to encoded pairs, by the same steps as rows of SFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute
from transformers import PreTrainedTokenizerBase

from alignkit.choices import Overlength, TrainOn
from alignkit.config import DataConfig
from alignkit.data.batches.batching import IGNORED
from alignkit.data.encode.fewer_turns import CUT_TURNS, longest_ends
from alignkit.data.encode.lengths import needed_length
from alignkit.data.encode.masking import EncodeRules, Encoding, RowRefused, encode_rows
from alignkit.data.encode.pair_lengths import EncodedPair, apply_pair_length
from alignkit.data.encode.templates import Template
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.preferences import PAIRS, Preference
from alignkit.data.sets.encode_sets import EncodeOutcome, encode_sets, record_sets, to_datasets
from alignkit.data.sets.items import SourcedItem, parse_sets, read_sets, stop_if_malformed
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.lint import Lint, lint
from alignkit.data.sets.loaded import EncodedData, EncodedSet, example_items
from alignkit.data.sets.section import check_data
from alignkit.data.sets.split import hold_out
from alignkit.data.sets.system import give_system_to_sets
from alignkit.errors import DataError

_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_MASKED = ("chosen_masked", "rejected_masked")


class PairSet(EncodedSet):
    """Encoded pairs of one set, with the columns `prompt_ids`, `chosen_ids`, `rejected_ids` (lists of int32).

    A column `margin` (float32) is there only where every pair has one; `chosen_masked` and `rejected_masked` (int32),
    how many tokens a response begins with that carry no loss, only under `data.train_reasoning=false`.
    """

    filler: ClassVar = {**{name: [0] for name in _IDS}, **dict.fromkeys(_MASKED, 0), "margin": 0.0}

    def side_lengths(self) -> tuple[list[int], list[int], list[int]]:
        """Return the tokens in each pair's prompt, chosen side and rejected side."""
        prompt, chosen, rejected = (
            pa.compute.list_value_length(self.dataset.data.column(name)).to_pylist() for name in _IDS
        )
        return prompt, chosen, rejected

    def num_masked(self) -> tuple[list[int], list[int]]:
        """Return how many tokens carry no loss at the start of each pair's chosen side and rejected side."""
        rows = self.dataset
        chosen, rejected = (list(rows[name]) if name in rows.column_names else [0] * len(rows) for name in _MASKED)
        return chosen, rejected

    def line_lengths(self) -> list[int]:
        """Return the tokens of each pair on one line: a prompt, whose last token is there twice, and both responses."""
        return [prompt + chosen + rejected + 1 for prompt, chosen, rejected in zip(*self.side_lengths(), strict=True)]


@dataclass
class PairData(EncodedData[PairSet]):
    """Everything that was read.

    Attributes:
        lint: what is odd about the pairs.
    """

    lint: Lint = field(default_factory=Lint)

    set_type = PairSet


def load_pairs(
    data: DataConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    num_examples: int = 0,
    use_margin: bool = True,
) -> PairData:
    """Read, parse, split, encode and cut every pair the section names.

    Args:
        data: the section.
        template: bound to `tokenizer`.
        tokenizer: of the model.
        max_length: most tokens in a prompt and one side.
        seed: of the evaluation split and of fractional source weights.
        num_examples: how many prompts to keep for samples, each with its chosen response.
        use_margin: keep the `margin` column where the data has one.

    Raises:
        DataError: malformed rows under `data.malformed=stop`, margins on some rows alone, a broken drop budget, or
            nothing left to train on.
    """
    ledger = Ledger(data.overlength)
    encode = partial(encode_pairs, template=template, tokenizer=tokenizer, data=data, max_length=max_length)
    rows = read_sets(data, PAIRS, seed=seed)
    items, read = parse_sets(rows, PAIRS, ledger, malformed=data.malformed)
    items = hold_out(items, fraction=data.eval_fraction, groups=data.eval_groups, seed=seed)
    items = give_system_to_sets(items, data.system, ledger)
    has_margin = use_margin and _all_have_margins(items)
    columns = partial(_columns, has_margin=has_margin, has_masks=not data.train_reasoning)
    outcomes = encode_sets(items, encode, num_proc=data.num_proc)
    kept = record_sets(items, outcomes, ledger)
    sets = {name: PairSet(dataset) for name, dataset in to_datasets(kept, columns).items()}
    stop_if_malformed(ledger.malformed(), data.malformed)
    ledger.check_budget(data.max_dropped)
    found = lint(items, ledger, [pairs.side_lengths()[1:] for pairs in sets.values()])
    examples = [preference.sides()[0] for preference in example_items(items)[:num_examples]]
    return PairData(sets, ledger, read, examples, found)


def check_pair_data(data: DataConfig, *, scores_tokens: bool = False) -> list[str]:
    """List what is wrong with the section before a row is read, one line each; empty where all is well.

    Args:
        data: the section.
        scores_tokens: a response's score is the sum of its tokens', so that some may be left out.
    """
    problems = check_data(data, PAIRS)
    if data.train_on is not TrainOn.assistant:
        problems.append(
            f"data.train_on={data.train_on} has no effect: of a pair the two responses are scored, and nothing else"
        )
    if not data.train_reasoning and not scores_tokens:
        problems.append("data.train_reasoning=false: a reward model scores whole responses; leave it out")
    if data.streaming:
        problems.append("data.streaming=true: pairs are not read as training goes; leave it out")
    return problems


def _all_have_margins(items: Mapping[str, Sequence[SourcedItem[Preference]]]) -> bool:
    """Tell whether every pair has a margin.

    Raises:
        DataError: some pairs have one and others do not.
    """
    rows = [item for of_set in items.values() for item in of_set]
    without = [row.source for row in rows if row.item.margin is None]
    if without and len(without) < len(rows):
        raise DataError(
            f"{without[0]}: it has no 'margin', like {len(without)} of {len(rows)} rows: give one to every row, or none"
        )
    return bool(rows) and not without


def encode_pairs(
    preferences: Sequence[Preference],
    *,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    max_length: int,
) -> list[EncodeOutcome[EncodedPair]]:
    """Encode pairs with one call of the tokenizer, each side as SFT would, and fit each to `max_length`."""
    rules = replace(EncodeRules.of(data), train_on=TrainOn.last_turn)
    encode = partial(encode_rows, template=template, tokenizer=tokenizer, rules=rules)
    rows = encode([side for preference in preferences for side in preference.sides()])
    outcome = partial(_outcome, data=data, max_length=max_length)
    outcomes = list(map(outcome, preferences, rows[::2], rows[1::2]))
    if data.overlength is not Overlength.keep_end:
        return outcomes
    cut = _without_first_turns(preferences, rows, encode, max_length)
    rows = encode([side for preference in cut.values() for side in preference.sides()])
    for index, preference, *sides in zip(cut, cut.values(), rows[::2], rows[1::2], strict=True):
        outcomes[index] = outcome(preference, *sides, before=CUT_TURNS)
    return outcomes


def _without_first_turns(
    preferences: Sequence[Preference],
    rows: Sequence[list[Encoding] | RowRefused],
    encode: Callable[[list[Conversation]], list[list[Encoding] | RowRefused]],
    max_length: int,
) -> dict[int, Preference]:
    """Return the pairs that are too long without as many of their prompts' first turns as the longer side takes."""
    longer: dict[int, Conversation] = {}
    for index, (preference, sides) in enumerate(zip(preferences, zip(rows[::2], rows[1::2], strict=True), strict=True)):
        lengths = [0 if isinstance(side, RowRefused) else needed_length(side[-1]) for side in sides]
        if max(lengths) > max_length and min(lengths):
            longer[index] = preference.sides()[lengths.index(max(lengths))]
    ends = longest_ends(
        list(longer.values()),
        lambda some: [not isinstance(row, RowRefused) and needed_length(row[-1]) <= max_length for row in encode(some)],
    )
    return {
        index: replace(preferences[index], prompt=replace(end, messages=end.messages[:-1]))
        for (index, before), end in zip(longer.items(), ends, strict=True)
        if end != before
    }


def _outcome(
    preference: Preference,
    chosen_side: list[Encoding] | RowRefused,
    rejected_side: list[Encoding] | RowRefused,
    data: DataConfig,
    max_length: int,
    before: str = "",
) -> EncodeOutcome[EncodedPair]:
    """Fit a pair from its two sides; `before` says how it was cut before that."""
    if isinstance(chosen_side, RowRefused):
        return EncodeOutcome.left_out(chosen_side)
    if isinstance(rejected_side, RowRefused):
        return EncodeOutcome.left_out(rejected_side)
    (chosen,), (rejected,) = chosen_side, rejected_side
    (start, end), (other_start, other_end) = chosen.responses[-1], rejected.responses[-1]
    prompt_ids = chosen.input_ids[:start]
    if prompt_ids != rejected.input_ids[:other_start]:
        return EncodeOutcome([], "the template renders the prompt otherwise for each side")
    pair = EncodedPair(
        prompt_ids,
        chosen.input_ids[start:end],
        rejected.input_ids[other_start:other_end],
        _num_masked(chosen),
        _num_masked(rejected),
        preference.margin,
        tuple(dict.fromkeys(chosen.notes + rejected.notes)),
        chosen.template_kwargs,
        {"prompt_ids": chosen.lead_length} if before else {},
    )
    lengths = {"prefix_length": chosen.prefix_length, "suffix_length": chosen.suffix_length, "max_length": max_length}
    kept, reason = apply_pair_length(pair, **lengths, policy=data.overlength)
    return EncodeOutcome([] if kept is None else [kept], reason or before)


def _num_masked(side: Encoding) -> int:
    start, end = side.responses[-1]
    return next(at for at, label in enumerate(side.labels[start:end]) if label != IGNORED)


def _columns(pairs: list[EncodedPair], *, has_margin: bool, has_masks: bool) -> dict[str, Any]:
    lists = pa.list_(pa.int32())
    columns = {name: pa.array([getattr(pair, name) for pair in pairs], lists) for name in _IDS}
    for name in _MASKED if has_masks else ():
        columns[name] = pa.array([getattr(pair, name) for pair in pairs], pa.int32())
    return columns | ({"margin": pa.array([pair.margin for pair in pairs], pa.float32())} if has_margin else {})
