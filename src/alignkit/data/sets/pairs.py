"""From the `data` section to encoded pairs, by the sources, templates, ledger and split that SFT rows go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from alignkit.config import DataConfig, TrainOn
from alignkit.data.encode.masking import Encoding, encode_rows
from alignkit.data.encode.pair_lengths import EncodedPair, apply_pair_length
from alignkit.data.encode.templates import Template
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.preferences import PAIRS, Preference
from alignkit.data.sets.dataset import check_data, read_sets, sample_rows
from alignkit.data.sets.encode_sets import EncodeOutcome, Progress, SourcedItem, encode_set, exchanged
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.lint import Lint, lint
from alignkit.errors import DataError

__all__ = ["EncodedPair", "PairData", "PairSet", "apply_pair_length", "check_pair_data", "load_pairs", "shared"]

_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass
class PairSet:
    """Encoded pairs of one set.

    Attributes:
        dataset: columns `prompt_ids`, `chosen_ids`, `rejected_ids` (lists of int32), `margin` (float32; only where
            every pair has one), `row_index` (the pair's number) and `source` (`file:N`).
    """

    dataset: Dataset

    @property
    def sources(self) -> list[str]:
        """`file:N` of each pair."""
        return list(self.dataset["source"])

    @property
    def lengths(self) -> list[int]:
        """Tokens in each pair: the prompt once, and both sides."""
        return [sum(parts) for parts in zip(*self.side_lengths(), strict=True)]

    def side_lengths(self) -> tuple[list[int], list[int], list[int]]:
        """Tokens in each pair's prompt, chosen side and rejected side."""
        prompt, chosen, rejected = (
            pa.compute.list_value_length(self.dataset.data.column(name)).to_pylist() for name in _IDS
        )
        return prompt, chosen, rejected


@dataclass
class PairData:
    """Everything that was read.

    Attributes:
        train: pairs to train on.
        evals: held-out pairs by set name (`eval` where there is one set).
        ledger: the fate of every source row.
        formats: format of each source, as detected or named.
        prompts: a few held-out prompts (training ones where nothing is held out), for samples, each ending with the
            user; no two are the same.
        wanted: the chosen response to each of these.
        lint: what is odd about the pairs.
    """

    train: PairSet
    evals: dict[str, PairSet]
    ledger: Ledger
    formats: dict[str, str] = field(default_factory=dict)
    prompts: list[Conversation] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)
    lint: Lint = field(default_factory=Lint)

    def datasets(self) -> dict[str, Dataset]:
        """The pairs by set name."""
        return {name: pairs.dataset for name, pairs in {"train": self.train, **self.evals}.items()}


def load_pairs(
    data: DataConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    num_prompts: int = 0,
    use_margin: bool = True,
    on_rows: Progress | None = None,
) -> PairData:
    """Read, format, split, encode and cut every pair the section names.

    Args:
        data: the section.
        template: bound to `tokenizer`.
        tokenizer: of the model.
        max_length: most tokens in a prompt and one side.
        seed: of the evaluation split and of fractional source weights.
        num_prompts: how many prompts to keep for samples.
        use_margin: keep the `margin` column where the data has one.
        on_rows: called with the number of rows each chunk encoded.

    Raises:
        DataError: malformed rows under `data.malformed=stop`, margins on some rows alone, a broken drop budget, or
            nothing left to train on.
    """
    ledger = Ledger()
    rows, formats = read_sets(data, PAIRS, ledger, seed=seed)
    has_margin = use_margin and _all_have_margins([row for named in rows.values() for row in named])
    encode = partial(encode_pairs, template=template, tokenizer=tokenizer, data=data, max_length=max_length)
    columns = partial(_columns, has_margin=has_margin)
    sets = {
        name: PairSet(encode_set(named, name, encode, columns, ledger, num_proc=data.num_proc, on_rows=on_rows))
        for name, named in rows.items()
    }
    ledger.check_budget(data.max_dropped)
    found = lint(rows, ledger, [pairs.side_lengths()[1:] for pairs in sets.values()])
    shown: dict[str, Preference] = {}
    for row in sample_rows(rows):
        shown.setdefault(row.item.prompt_key(), row.item)
    first = list(shown.values())[:num_prompts]
    prompts, wanted = [item.prompt for item in first], [item.chosen.content for item in first]
    return PairData(sets.pop("train"), sets, ledger, formats, prompts, wanted, found)


def check_pair_data(data: DataConfig) -> list[str]:
    """What is wrong with the section before a row is read, one line each; empty where all is well."""
    problems = check_data(data, PAIRS)
    if data.train_on is not TrainOn.assistant:
        problems.append(
            f"data.train_on={data.train_on} has no effect: of a pair the two responses are scored, and nothing else"
        )
    if data.streaming:
        problems.append("data.streaming=true: pairs are not read as training goes; leave it out")
    return problems


def shared(load: Callable[[], PairData], folder: Path) -> PairData:
    """Read and encode in the main process alone; see `encoded.exchanged`."""
    return exchanged(load, folder, _rebuilt)


def _rebuilt(datasets: dict[str, Dataset]) -> PairData:
    sets = {name: PairSet(dataset) for name, dataset in datasets.items()}
    return PairData(sets.pop("train"), sets, Ledger())


def _all_have_margins(rows: Iterable[SourcedItem[Preference]]) -> bool:
    """Whether every pair has a margin; none may be the only one with or without."""
    rows = list(rows)
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
    """Encode pairs with one call of the tokenizer, each side as SFT would, and hold them to `max_length`."""
    sides = [side for preference in preferences for side in preference.sides()]
    rows = encode_rows(sides, template, tokenizer, train_on=TrainOn.last_turn, control_tokens=data.control_tokens)
    return [
        _outcome(preference, chosen, rejected, data, max_length)
        for preference, chosen, rejected in zip(preferences, rows[::2], rows[1::2], strict=True)
    ]


def _outcome(
    preference: Preference, chosen: Encoding | str, rejected: Encoding | str, data: DataConfig, max_length: int
) -> EncodeOutcome[EncodedPair]:
    if isinstance(chosen, str) or isinstance(rejected, str):
        return EncodeOutcome(None, chosen if isinstance(chosen, str) else str(rejected))
    (start, end), (other_start, other_end) = chosen.responses[-1], rejected.responses[-1]
    prompt_ids = chosen.input_ids[:start]
    if prompt_ids != rejected.input_ids[:other_start]:
        return EncodeOutcome(None, "the template renders the prompt otherwise for each side")
    pair = EncodedPair(
        prompt_ids,
        chosen.input_ids[start:end],
        rejected.input_ids[other_start:other_end],
        preference.margin,
        tuple(dict.fromkeys(chosen.notes + rejected.notes)),
    )
    lengths = {"prefix_length": chosen.prefix_length, "suffix_length": chosen.suffix_length, "max_length": max_length}
    return EncodeOutcome(*apply_pair_length(pair, **lengths, policy=data.overlength))


def _columns(pairs: list[EncodedPair], *, has_margin: bool) -> dict[str, Any]:
    lists = pa.list_(pa.int32())
    columns = {name: pa.array([getattr(pair, name) for pair in pairs], lists) for name in _IDS}
    return columns | ({"margin": pa.array([pair.margin for pair in pairs], pa.float32())} if has_margin else {})
