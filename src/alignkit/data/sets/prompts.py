"""From the `data` section to prompts for a policy, with the columns a reward may read beside the answer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.choices import Overlength
from alignkit.config import DataConfig, PromptDataConfig
from alignkit.data.encode.fewer_turns import CUT_TURNS, longest_ends
from alignkit.data.encode.masking import EncodeRules, RowRefused, encode_prompts, lead_length
from alignkit.data.encode.templates import Template, adds_bos
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.keys_seen import KeysSeen
from alignkit.data.rows.prompts import PromptRow, prompt_kind
from alignkit.data.sets.encode_sets import EncodeOutcome, record_sets
from alignkit.data.sets.items import SourcedItem, parse_sets, read_sets, stop_if_malformed
from alignkit.data.sets.ledger import Ledger
from alignkit.data.sets.section import check_data
from alignkit.data.sets.source_read import SourceRead
from alignkit.data.sets.split import hold_out
from alignkit.data.sets.system import give_system_to_sets
from alignkit.errors import as_yaml

# Of `DataConfig`: they speak of responses, or of how rows with responses are batched.
_NO_EFFECT = {
    "train_on": "prompts carry no loss",
    "train_reasoning": "the loss scores whole responses",
    "batching": "prompts are grouped by length as they are answered",
    "num_proc": "prompts are encoded in one process",
    "streaming": "prompts are read into memory",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        source: `file:N`.
        ids: what the model is fed; at least one.
        text: the question: the content of the last user turn, or the beginning of a plain text.
        conversation: the messages; of plain text, the text as it was cut.
        columns: the row as it was read, for rewards that are functions.
        cuts: under `prompt_ids`, the index of the token before which others were left out; empty where none were.
    """

    source: str
    ids: list[int]
    text: str
    conversation: Conversation
    columns: Mapping[str, Any]
    cuts: Mapping[str, int] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reading of the row counted that changes no fate."""
        return self.conversation.notes

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """The row's own arguments of the template."""
        return self.conversation.template_kwargs


@dataclass
class PromptData:
    """Everything that was read.

    Attributes:
        train: prompts to learn on.
        held_out: prompts to evaluate on; empty where none are.
        ledger: the fate of every source row.
        read: what was read of each source.
    """

    train: list[Prompt]
    held_out: list[Prompt]
    ledger: Ledger
    read: list[SourceRead] = field(default_factory=list)


def check_prompts(data: PromptDataConfig) -> list[str]:
    """List what is wrong with the section before a row is read, one line each; empty where all is well."""
    problems = check_data(data, prompt_kind(data.prompt_length))
    if isinstance(data.eval_path, dict):
        problems.append("data.eval_path: one set of held-out prompts is scored; give a path or a list of paths")
    defaults = {item.name: item.default for item in dataclasses.fields(DataConfig)}
    for name, why in _NO_EFFECT.items():
        if (value := getattr(data, name)) != defaults[name]:
            problems.append(f"data.{name}={as_yaml(value)} has no effect here: {why}; leave it out")
    if data.overlength is Overlength.keep_start:
        problems.append("data.overlength=keep_start would cut off what every prompt ends with: take keep_end or drop")
    low, high = data.prompt_length.min, data.prompt_length.max
    if (low is None) != (high is None):
        problems.append("data.prompt_length needs both min and max")
    elif low is not None and high is not None and low > high:
        problems.append(f"data.prompt_length.min={low} is more than data.prompt_length.max={high}")
    return problems


def load_prompts(
    data: PromptDataConfig, template: Template, tokenizer: PreTrainedTokenizerBase, *, max_length: int, seed: int
) -> PromptData:
    """Read, format, split, encode and cut every row the section names.

    A response in a row is left off. Plain text becomes a prompt of its first tokens, as many as are drawn from
    `data.prompt_length` by the seed and the row's source.

    Args:
        data: the section, which `check_prompts` has passed.
        template: bound to `tokenizer`.
        tokenizer: of the policy.
        max_length: most tokens in a prompt.
        seed: of the split, of fractional source weights and of the lengths.

    Raises:
        DataError: malformed rows under `data.malformed=stop`, a broken drop budget, or nothing left to ask.
    """
    ledger = Ledger(data.overlength, only_prompts=True)
    ledger.keys = KeysSeen("columns that no prompt uses, which a reward may read")
    kind = prompt_kind(data.prompt_length)
    encode = partial(_encode, data=data, template=template, tokenizer=tokenizer, max_length=max_length, seed=seed)
    rows = read_sets(data, kind, seed=seed)
    items, read = parse_sets(rows, kind, ledger, malformed=data.malformed)
    items = hold_out(items, fraction=data.eval_fraction, groups=data.eval_groups, seed=seed)
    items = give_system_to_sets(items, data.system, ledger)
    outcomes = {name: encode(of_set) for name, of_set in items.items()}
    kept = record_sets(items, outcomes, ledger)
    prompts = {name: [prompt for _, prompt in of_set] for name, of_set in kept.items()}
    stop_if_malformed(ledger.malformed(), data.malformed)
    ledger.check_budget(data.max_dropped)
    return PromptData(prompts["train"], prompts.get("eval", []), ledger, read)


def _encode(
    items: list[SourcedItem[PromptRow]],
    *,
    data: PromptDataConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seed: int,
) -> list[EncodeOutcome[Prompt]]:
    """Encode the prompts of a set with one call of the tokenizer, and cut each."""
    rules = EncodeRules.of(data)
    encode = partial(encode_prompts, template=template, tokenizer=tokenizer, rules=rules)
    encoded = encode([item.item.conversation for item in items])
    cut: set[int] = set()
    if data.overlength is Overlength.keep_end:
        items, encoded, cut = _without_first_turns(items, encoded, encode, max_length)
    num_bos = int(adds_bos(tokenizer))
    outcomes: list[EncodeOutcome[Prompt]] = []
    for index, (item, ids) in enumerate(zip(items, encoded, strict=True)):
        if isinstance(ids, RowRefused):
            outcomes.append(EncodeOutcome.left_out(ids))
            continue
        kept, reason = _cut(ids, item, data, num_bos, max_length=max_length, seed=seed)
        if not kept:
            outcomes.append(EncodeOutcome([], reason))
            continue
        prompt = _prompt(item, kept, num_bos, tokenizer)
        if reason == "cut_start":
            prompt = dataclasses.replace(prompt, cuts={"prompt_ids": num_bos})
        elif index in cut:
            at = lead_length(item.item.conversation, kept, template, tokenizer, rules)
            prompt, reason = dataclasses.replace(prompt, cuts={"prompt_ids": at}), reason or CUT_TURNS
        outcomes.append(EncodeOutcome([prompt], reason))
    return outcomes


def _without_first_turns(
    items: list[SourcedItem[PromptRow]],
    encoded: list[list[int] | RowRefused],
    encode: Callable[[list[Conversation]], list[list[int] | RowRefused]],
    max_length: int,
) -> tuple[list[SourcedItem[PromptRow]], list[list[int] | RowRefused], set[int]]:
    """Leave out the first turns of prompts that are too long; return all items, their tokens, and which were cut."""

    def is_short(ids: list[int] | RowRefused) -> bool:
        return not isinstance(ids, RowRefused) and len(ids) <= max_length

    items, encoded = list(items), list(encoded)
    long = {
        index: item.item.conversation
        for index, (item, ids) in enumerate(zip(items, encoded, strict=True))
        if not isinstance(ids, RowRefused) and not is_short(ids) and not item.item.conversation.plain
    }
    ends = longest_ends(list(long.values()), lambda some: list(map(is_short, encode(some))))
    cut = {index: end for (index, before), end in zip(long.items(), ends, strict=True) if end != before}
    for (index, end), ids in zip(cut.items(), encode(list(cut.values())), strict=True):
        row = dataclasses.replace(items[index].item, conversation=end)
        items[index], encoded[index] = dataclasses.replace(items[index], item=row), ids
    return items, encoded, set(cut)


def _cut(
    ids: list[int], row: SourcedItem[PromptRow], data: PromptDataConfig, num_bos: int, *, max_length: int, seed: int
) -> tuple[list[int], str]:
    """Cut the ids to feed (none where the row is dropped), and say why."""
    length = data.prompt_length
    if row.item.conversation.plain:
        assert length.min is not None
        assert length.max is not None
        drawn = random.Random(f"{seed} {row.source}").randint(length.min, length.max)
        if len(ids) - num_bos < length.min:
            return [], "too_short"
        ids = ids[: num_bos + drawn]
    if len(ids) <= max_length:
        return ids, ""
    if data.overlength is Overlength.drop:
        return [], "too_long"
    return ids[:num_bos] + ids[len(ids) - max_length + num_bos :], "cut_start"


def _prompt(row: SourcedItem[PromptRow], ids: list[int], num_bos: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    conversation = row.item.conversation
    if conversation.plain:
        message = dataclasses.replace(conversation.messages[0], content=str(tokenizer.decode(ids[num_bos:])))
        conversation = dataclasses.replace(conversation, messages=(message,))
    return Prompt(row.source, ids, conversation.question(), conversation, row.item.columns)
