"""From the `data` section to prompts: what a policy is asked, and what a reward may look at beside the answer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignkit.config import DataConfig, Overlength, PromptDataConfig, PromptLength
from alignkit.data.conversation import Conversation
from alignkit.data.dataset import check_data, sources_of, stop_if_malformed
from alignkit.data.formats import RowError, check_columns, detect_format, to_conversation, to_prompt
from alignkit.data.ledger import Ledger
from alignkit.data.masking import encode_prompts
from alignkit.data.sources import Source, SourceRow, read_rows, repeats
from alignkit.data.split import split_by_prompt
from alignkit.data.templates import Template, adds_bos

# Of `DataConfig`: they speak of responses, or of how rows with responses are batched.
_NO_EFFECT = {
    "train_on": "prompts carry no loss",
    "batching": "prompts are grouped by length as they are answered",
    "num_proc": "prompts are encoded in one process",
    "streaming": "prompts are read into memory",
}
_LOOKED_AT = 10  # rows whose columns tell the format


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        source: `file:N`.
        ids: what the model is fed; at least one.
        text: what was asked: the words of the last user turn, or the beginning of a plain text.
        conversation: the messages; of plain text, the text as it was cut.
        columns: the row as it was read, for rewards that are functions.
    """

    source: str
    ids: list[int]
    text: str
    conversation: Conversation
    columns: Mapping[str, Any]


@dataclass
class PromptData:
    """Everything that was read.

    Attributes:
        train: prompts to learn on.
        held_out: prompts to evaluate on; empty where none are.
        ledger: the fate of every source row.
        formats: format of each source, as detected or named.
    """

    train: list[Prompt]
    held_out: list[Prompt]
    ledger: Ledger
    formats: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Read:
    row: SourceRow
    conversation: Conversation
    is_copy: bool


def check_prompts(data: PromptDataConfig) -> list[str]:
    """What is wrong with the section before a row is read, one line each; empty where all is well."""
    problems = check_data(data)
    if isinstance(data.eval_path, dict):
        problems.append("data.eval_path: one set of held-out prompts is scored; give a path or a list of paths")
    defaults = {item.name: item.default for item in dataclasses.fields(DataConfig)}
    for name, why in _NO_EFFECT.items():
        if (value := getattr(data, name)) != defaults[name]:
            problems.append(f"data.{name}={value} has no effect here: {why}; leave it out")
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
    `data.prompt_length` by the seed and the row's place.

    Args:
        data: the section, which `check_prompts` has passed.
        template: bound to `tokenizer`.
        tokenizer: of the policy.
        max_length: most tokens in a prompt.
        seed: of the split, of fractional source weights and of the lengths.

    Raises:
        DataError: malformed rows under `data.malformed=stop`, a broken drop budget, or nothing left to ask.
    """
    ledger = Ledger()
    formats: dict[str, str] = {}
    paths = {"train": data.path} | ({"eval": data.eval_path} if data.eval_path is not None else {})
    sets = {name: _read(data, name, path, ledger, formats, seed=seed) for name, path in paths.items()}
    if data.eval_fraction:
        rows = sets["train"]
        keys = [read.conversation.prompt_key() for read in rows]
        kept, held_out = split_by_prompt(keys, fraction=data.eval_fraction, seed=seed)
        sets = {"train": [rows[i] for i in kept], "eval": [rows[i] for i in held_out]}
    prompts = {
        name: _encoded(reads, name, data, template, tokenizer, ledger, max_length=max_length, seed=seed)
        for name, reads in sets.items()
    }
    ledger.check_budget(data.max_dropped)
    return PromptData(prompts["train"], prompts.get("eval", []), ledger, formats)


def _read(
    data: PromptDataConfig, name: str, path: Any, ledger: Ledger, formats: dict[str, str], *, seed: int
) -> list[_Read]:
    reads, malformed, left = [], [], data.limit
    for number, source in enumerate(sources_of(data, name, path)):
        rows = list(read_rows(source, limit=left))
        left = None if left is None else left - len(rows)
        formats[source.path] = format_ = _format_of(source, rows)
        ledger.expect(row.source for row in rows)
        for row, times in zip(rows, repeats(len(rows), weight=source.weight, seed=seed + number), strict=True):
            try:
                conversation = _conversation(row, format_, source.columns, data.prompt_length)
            except RowError as error:
                malformed.append(f"{row.source}: {error}")
                ledger.drop(row.source, str(error), name, malformed=True)
                continue
            if not times:
                ledger.drop(row.source, "weight", name)
            reads += [_Read(row, conversation, is_copy=copy > 0) for copy in range(times)]
    stop_if_malformed(malformed, data.malformed)
    return reads


def _format_of(source: Source, rows: Sequence[SourceRow]) -> str:
    first = [row.row for row in rows if not row.problem and isinstance(row.row, dict)][:_LOOKED_AT]
    if not first:
        return "prompt"  # every row is malformed and will say so itself
    found = dict.fromkeys(key for row in first for key in row)
    if source.format == "auto":
        return detect_format(found, first[0], columns=source.columns, responses=False)
    check_columns(found, source.columns)
    return source.format


def _conversation(row: SourceRow, format_: str, columns: dict[str, Any], length: PromptLength) -> Conversation:
    if row.problem:
        raise RowError(row.problem)
    if format_ != "text":
        if length.max is not None:
            raise RowError("data.prompt_length cuts plain text (a column 'text'), and this row is a conversation")
        return to_prompt(row.row, format_, columns)
    if length.max is None:
        raise RowError("plain text holds no prompt: data.prompt_length={min: 2, max: 8} asks for its first tokens")
    return to_conversation(row.row, format_, columns)


def _encoded(
    reads: list[_Read],
    name: str,
    data: PromptDataConfig,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    ledger: Ledger,
    *,
    max_length: int,
    seed: int,
) -> list[Prompt]:
    found = encode_prompts(
        [read.conversation for read in reads], template, tokenizer, control_tokens=data.control_tokens
    )
    num_bos = int(adds_bos(tokenizer))
    prompts = []
    for read, ids in zip(reads, found, strict=True):
        source, reason, was_cut = read.row.source, ids if isinstance(ids, str) else "", False
        if not isinstance(ids, str):
            ids, reason = _cut(ids, read, data, num_bos, max_length=max_length, seed=seed)
            was_cut = bool(ids and reason)
            if ids:
                prompts.append(_prompt(read, ids, num_bos, tokenizer))
        if read.is_copy:
            continue
        if was_cut:
            ledger.truncate(source, reason, name)
        elif reason:
            ledger.drop(source, reason, name)
        else:
            ledger.keep(source, name)
    return prompts


def _cut(
    ids: list[int], read: _Read, data: PromptDataConfig, num_bos: int, *, max_length: int, seed: int
) -> tuple[list[int], str]:
    """The ids to feed (none where the row is dropped) and why they are not what the row had."""
    length = data.prompt_length
    if read.conversation.plain:
        assert length.min is not None
        assert length.max is not None
        wanted = random.Random(f"{seed} {read.row.source}").randint(length.min, length.max)
        if len(ids) - num_bos < length.min:
            return [], "too_short"
        ids = ids[: num_bos + wanted]
    if len(ids) <= max_length:
        return ids, ""
    if data.overlength is Overlength.drop:
        return [], "too_long"
    return ids[:num_bos] + ids[len(ids) - max_length + num_bos :], "cut_start"


def _prompt(read: _Read, ids: list[int], num_bos: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    conversation, columns = read.conversation, dict(read.row.row)
    if conversation.plain:
        text = str(tokenizer.decode(ids[num_bos:]))
        message = dataclasses.replace(conversation.messages[0], content=text)
        conversation = dataclasses.replace(conversation, messages=(message,))
    else:
        last = conversation.messages[-1]
        text = f"{last.content}\n{last.input}" if last.input else last.content
    return Prompt(read.row.source, ids, text, conversation, columns)
