"""What exactly the loss sees: conversations become token ids and labels, laid side by side.

A prompt is tokenized as one string, as a server does it, and what the model must say after it is tokenized alone. So
what inference feeds is the beginning of what training fed, token by token. Where a template rewrites earlier turns, one
row becomes several parts, each of which begins with what a server would feed for its last turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Self, TypeVar

from transformers import PreTrainedTokenizerBase

from alignkit.choices import ControlTokens, ReasoningForm, ToolsForm, TrainOn
from alignkit.config import DataConfig
from alignkit.data.batches.batching import IGNORED
from alignkit.data.encode.control_tokens import Controls
from alignkit.data.encode.reasoning import with_reasoning
from alignkit.data.encode.rendering import RowRefused, Template
from alignkit.data.encode.sandbox import bounded
from alignkit.data.encode.supervision import assistant_turns, is_trained_between, trained_messages
from alignkit.data.encode.templates import adds_bos
from alignkit.data.encode.tokens import Pieces, flat, ids_of_pieces, ids_of_texts, num_tokens_before
from alignkit.data.encode.trained_turns import TrainedTurn, leaves, prompt_text, trained_turn
from alignkit.data.rows.conversation import Conversation
from alignkit.data.rows.tools_as_text import tools_as_text

__all__ = [
    "EncodeRules",
    "Encoding",
    "RowRefused",
    "encode",
    "encode_prompt",
    "encode_prompts",
    "encode_rows",
    "lead_length",
]

NEUTRALIZED = "neutralized control tokens"

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class EncodeRules:
    """What the section `data` says about how a row is encoded; see there."""

    train_on: TrainOn = TrainOn.assistant
    control_tokens: ControlTokens = ControlTokens.refuse
    tools: ToolsForm = ToolsForm.native
    reasoning: ReasoningForm = ReasoningForm.native
    train_reasoning: bool = True

    @classmethod
    def of(cls, data: DataConfig) -> Self:
        """Take the rules from the section."""
        return cls(data.train_on, data.control_tokens, data.tools, data.reasoning, data.train_reasoning)


@dataclass(frozen=True, slots=True)
class Encoding:
    """One row, or a part of one, as the trainer gets it, not yet cut to a length.

    Attributes:
        input_ids: the tokens.
        labels: the same ids where there is loss, else -100.
        responses: `(start, stop)` of every assistant turn with loss, end token included.
        lead_length: tokens that begin the row before the first user's turn: bos, system message.
        prefix_length: tokens that begin the row before the first user's content: the first heading, too.
        suffix_length: tokens right before the last response that every prompt ends with, such as its heading.
        notes: what happened to the row that does not change its fate; of a row in parts, the first one has them.
        part: which part of its row it is, and of how many.
        template_kwargs: the row's own arguments of the template.
        cuts: where tokens were left out: the index of the token that now follows, by the name of the list of tokens.
    """

    input_ids: list[int]
    labels: list[int]
    responses: tuple[tuple[int, int], ...] = ()
    lead_length: int = 0
    prefix_length: int = 0
    suffix_length: int = 0
    notes: tuple[str, ...] = ()
    part: tuple[int, int] = (1, 1)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cuts: Mapping[str, int] = field(default_factory=dict)


def encode_rows(
    conversations: Sequence[Conversation], template: Template, tokenizer: PreTrainedTokenizerBase, rules: EncodeRules
) -> list[list[Encoding] | RowRefused]:
    """Encode many rows with one call of the tokenizer.

    Args:
        conversations: the rows.
        template: bound to `tokenizer`.
        tokenizer: of the model.
        rules: which turns carry loss, and in which form tools and reasoning are written.

    Returns:
        For each row its parts, or the reason why it is left out.
    """
    encoder = _Encoder(template, tokenizer, rules)
    drafts = _each(encoder.draft, conversations)
    sound = [draft for draft in drafts if isinstance(draft, _Draft)]
    rows = iter(encoder.encodings(sound))
    return [next(rows) if isinstance(draft, _Draft) else draft for draft in drafts]


def encode(
    conversation: Conversation, template: Template, tokenizer: PreTrainedTokenizerBase, rules: EncodeRules
) -> list[Encoding]:
    """Encode one row as `encode_rows` does.

    Raises:
        RowRefused: the row is left out; the text shows where.
    """
    (row,) = encode_rows([conversation], template, tokenizer, rules)
    if isinstance(row, RowRefused):
        raise row
    return row


def encode_prompts(
    conversations: Sequence[Conversation], template: Template, tokenizer: PreTrainedTokenizerBase, rules: EncodeRules
) -> list[list[int] | RowRefused]:
    """Encode conversations that wait for the assistant as inference feeds them: what training has before the answer.

    Returns:
        For each prompt its tokens, or the reason why it is left out.
    """
    encoder = _Encoder(template, tokenizer, rules)
    prompts = _each(encoder.prompt, conversations)
    sound = [prompt for prompt in prompts if isinstance(prompt, list)]
    tokens = ids_of_pieces(sound, tokenizer)
    rows = iter(encoder.forgery(row, ids) or flat(ids) for row, ids in zip(sound, tokens, strict=True))
    return [next(rows) if isinstance(prompt, list) else prompt for prompt in prompts]


def lead_length(
    conversation: Conversation,
    ids: list[int],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodeRules,
) -> int:
    """Count the tokens that begin an encoded prompt before its first user's turn: bos, system message."""
    (lead,) = ids_of_texts([_Encoder(template, tokenizer, rules).lead(conversation)], tokenizer)
    return _num_shared(lead, ids)


def encode_prompt(
    conversation: Conversation, template: Template, tokenizer: PreTrainedTokenizerBase, rules: EncodeRules
) -> list[int]:
    """Encode one prompt as `encode_prompts` does.

    Raises:
        RowRefused: the template has no place for the conversation, or a control token is typed in it.
    """
    (prompt,) = encode_prompts([conversation], template, tokenizer, rules)
    if isinstance(prompt, RowRefused):
        raise prompt
    return prompt


def _each(make: Callable[[Conversation], Made], conversations: Sequence[Conversation]) -> list[Made | RowRefused]:
    made: list[Made | RowRefused] = []
    with bounded(sum(len(conversation.messages) for conversation in conversations)):
        for conversation in conversations:
            try:
                made.append(make(conversation))
            except RowRefused as refusal:
                made.append(refusal)
    return made


@dataclass(frozen=True)
class _Draft:
    """A row between text and tokens.

    Attributes:
        conversation: as it is rendered, with `mark` around each control token typed in it.
        turns: of the assistant; those without loss only where the text around them has it.
        trained: indices of the messages with loss.
        mark: a character, or empty where nothing is marked.
        prefix: what its text begins with before the first user's content.
        tail: what the text goes on with behind the last of `turns`.
        notes: what is counted.
    """

    conversation: Conversation
    turns: list[TrainedTurn]
    trained: set[int]
    mark: str
    prefix: str
    tail: str
    notes: tuple[str, ...]

    def stretches(self) -> list[Pieces]:
        """Each stretch that is tokenized on its own: prompt and response of every turn, then the tail."""
        texts = [text for turn in self.turns for text in (turn.prompt, turn.response)]
        return [_pieces(text, self.mark) for text in [*texts, self.tail]]


class _Encoder:
    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase, rules: EncodeRules) -> None:
        self.template, self.tokenizer, self.rules = template, tokenizer, rules
        ends = dict(zip(template.stops, template.stop_ids, strict=True))
        self.controls = Controls.of(tokenizer, jinja=template.jinja, ends=ends)
        endings = [*template.ends, *template.next_tokens.values()]
        self._end_ids = {ids[0] for ids in ids_of_texts(endings, tokenizer) if ids}
        self._prefixes: dict[str, str] = {}

    def draft(self, conversation: Conversation) -> _Draft:
        draft = self._draft(conversation)
        for turn in draft.turns:
            _check_marks(turn.prompt + turn.response, draft.mark)
        return draft

    def _draft(self, conversation: Conversation) -> _Draft:
        conversation, template, mark, notes = self._as_rendered(conversation)
        if conversation.plain:
            return self._plain(conversation, mark)
        messages, everything = conversation.messages, self.rules.train_on is TrainOn.everything
        trained = trained_messages(messages, self.rules.train_on)
        turns = [
            trained_turn(template, conversation, i) for i in assistant_turns(messages) if i in trained or everything
        ]
        if not turns or not trained:
            raise RowRefused("nothing_to_learn")
        notes += tuple(note for turn in turns for note in turn.notes)
        tail = self._tail(template, conversation, turns[-1]) if template.is_shipped or everything else ""
        return _Draft(conversation, turns, trained, mark, self._prefix(template, conversation), tail, notes)

    def prompt(self, conversation: Conversation) -> list[Pieces]:
        conversation, template, mark, _ = self._as_rendered(conversation)
        if conversation.plain:
            turn = self._plain(conversation, mark).turns[0]
            return [_pieces(turn.prompt, mark), _pieces(conversation.messages[0].content, mark)]
        text = prompt_text(template, conversation)
        _check_marks(text, mark)
        return [_pieces(text, mark)]

    def lead(self, conversation: Conversation) -> str:
        """Return what the text begins with before the first user's turn."""
        conversation, template, *_ = self._as_rendered(conversation)
        return self._without_heading(self._prefix(template, conversation))

    def _without_heading(self, prefix: str) -> str:
        return prefix.removesuffix(self.template.user_heading)

    def _as_rendered(self, conversation: Conversation) -> tuple[Conversation, Template, str, tuple[str, ...]]:
        """The conversation in the forms the rules ask for, the template that renders it, the mark, and notes."""
        template, notes = self.template, conversation.notes
        if not conversation.plain:
            if self.rules.tools is ToolsForm.system:
                conversation = tools_as_text(conversation)
            conversation, template, counted = with_reasoning(conversation, template, self.rules.reasoning)
            notes += counted
            template.check(conversation)
        found = self.controls.find(conversation)
        if not found:
            return conversation, template, "", notes
        if self.rules.control_tokens is ControlTokens.refuse:
            raise RowRefused("control_tokens", found)
        conversation, mark = self.controls.mark(conversation)
        return conversation, template, mark, (*notes, NEUTRALIZED)

    def _plain(self, conversation: Conversation, mark: str) -> _Draft:
        """A text without a template: bos, the text, eos, each tokenized alone."""
        bos = str(self.tokenizer.bos_token) if adds_bos(self.tokenizer) else ""
        eos = str(self.tokenizer.eos_token or self.template.end_token)
        turn = TrainedTurn(0, bos, conversation.messages[0].content)
        return _Draft(conversation, [turn], {0}, mark, bos, eos, (NEUTRALIZED,) if mark else ())

    def _tail(self, template: Template, conversation: Conversation, last: TrainedTurn) -> str:
        if last.index + 1 == len(conversation.messages):
            return last.rest
        text, fed = template.text(conversation), last.prompt + last.response
        if text.startswith(fed):
            return text[len(fed) :]
        raise RowRefused(f"template {template.name} renders what follows the last response otherwise")

    def _prefix(self, template: Template, conversation: Conversation) -> str:
        opening = [*takewhile(lambda m: m.role in ("system", "developer"), conversation.messages)]
        key = repr((opening, conversation.tools, conversation.template_kwargs))
        if key not in self._prefixes:  # few differ, rendering costs
            self._prefixes[key] = template.prompt_prefix(conversation)
        return self._prefixes[key]

    def encodings(self, drafts: Sequence[_Draft]) -> list[list[Encoding] | RowRefused]:
        tokens = ids_of_pieces([draft.stretches() for draft in drafts], self.tokenizer)
        prefixes = list(dict.fromkeys(draft.prefix for draft in drafts))
        leads = map(self._without_heading, prefixes)
        *opening_ids, suffix_ids = ids_of_texts([*leads, *prefixes, self.template.prompt_suffix], self.tokenizer)
        openings = zip(opening_ids[: len(prefixes)], opening_ids[len(prefixes) :], strict=True)
        ids_of_prefix = dict(zip(prefixes, openings, strict=True))
        rows: list[list[Encoding] | RowRefused] = []
        for draft, ids in zip(drafts, tokens, strict=True):
            try:
                parts = self._parts(draft, ids)
            except RowRefused as refusal:
                rows.append(refusal)
                continue
            rows.append(_described(parts, draft, *ids_of_prefix[draft.prefix], suffix_ids))
        return rows

    def _parts(self, draft: _Draft, tokens: list[list[int]]) -> list[Encoding]:
        if refusal := self.forgery(draft.stretches(), tokens):
            raise refusal
        if draft.conversation.plain:
            ids = flat(tokens)
            if len(ids) < 2:  # nothing predicts a row's first token
                raise RowRefused("nothing_to_learn")
            return [Encoding(ids, ids)]
        turns = list(zip(tokens[:-1:2], tokens[1::2], strict=True))
        if any(not response or response[-1] not in self._end_ids for _, response in turns):
            raise RowRefused("a trained turn does not end in the end token", repr(draft.turns[-1].response[-40:]))
        *before, last = leaves(turns)
        parts = [*(self._part(draft, turns, part) for part in before), self._last_part(draft, turns, last, tokens[-1])]
        parts = [part for part in parts if any(label != IGNORED for label in part.labels[1:])]
        if not parts:
            raise RowRefused("nothing_to_learn")
        return parts

    def _part(self, draft: _Draft, turns: list[tuple[list[int], list[int]]], part: list[int]) -> Encoding:
        """A part whose responses alone carry loss."""
        prompt, response = turns[part[-1]]
        ids = [*prompt, *response]
        labels = [IGNORED] * len(ids)
        responses = []
        for turn, (prompt, response) in ((draft.turns[index], turns[index]) for index in part):
            if turn.index in draft.trained:
                start, stop = len(prompt), len(prompt) + len(response)
                responses.append((start, stop))
                masked = 0 if self.rules.train_reasoning else self._num_before(turn.response, turn.thought, draft.mark)
                labels[start + masked : stop] = response[masked:]
        return Encoding(ids, labels, tuple(responses))

    def _last_part(
        self, draft: _Draft, turns: list[tuple[list[int], list[int]]], part: list[int], tail: list[int]
    ) -> Encoding:
        """The part with the whole conversation, which under `everything` trains the text between the responses, too."""
        row = self._part(draft, turns, part)
        ids, labels = [*row.input_ids, *tail], [*row.labels, *([IGNORED] * len(tail))]
        if self.rules.train_on is TrainOn.everything:
            stop, following = 0, 0
            for turn, (prompt, response) in ((draft.turns[index], turns[index]) for index in part):
                if is_trained_between(draft.conversation.messages, draft.trained, following, turn.index):
                    labels[stop : len(prompt)] = ids[stop : len(prompt)]
                stop, following = len(prompt) + len(response), turn.index + 1
            for start, end in self._said_elsewhere(draft, part):
                labels[start:end] = [IGNORED] * (end - start)
            num_messages = len(draft.conversation.messages)
            if is_trained_between(draft.conversation.messages, draft.trained, following, num_messages):
                labels[stop:] = ids[stop:]
        return replace(row, input_ids=ids, labels=labels)

    def _said_elsewhere(self, draft: _Draft, part: list[int]) -> Iterator[tuple[int, int]]:
        """Yield the tokens, in the last part's prompt, of responses that other parts train."""
        prompt, at = draft.turns[part[-1]].prompt, 0
        for index, turn in enumerate(draft.turns[: part[-1]]):
            words = draft.conversation.messages[turn.index].content.strip()
            start = prompt.find(words, at)
            if start >= 0 and words:
                at = start + len(words)
                if index not in part:
                    yield self._num_before(prompt, start, draft.mark), self._num_before(prompt, at, draft.mark)

    def _num_before(self, text: str, end: int, mark: str) -> int:
        """How many tokens of a stretch begin before the character `end`."""
        if end and not self.tokenizer.is_fast:
            raise RowRefused("the tokenizer is a slow one, which does not tell where its tokens lie")
        return num_tokens_before(_pieces(text, mark), end, self.tokenizer)

    def forgery(self, stretches: list[Pieces], tokens: list[list[int]]) -> RowRefused | None:
        """Text that the tokenizer, by its own normalisation, turns into a control token, or cannot spell out."""
        for pieces, ids in zip(stretches, tokens, strict=True):
            num_written = sum(len(self.controls.written.findall(text)) for text in pieces[::2])
            if sum(map(self.controls.ids.__contains__, ids)) > num_written:
                return RowRefused("control_tokens", "the tokenizer makes one of ordinary text")
            if len(pieces) > 1 and self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) != "".join(pieces):
                return RowRefused("control_tokens", "the tokenizer cannot spell it in ordinary characters")
        return None


def _check_marks(text: str, mark: str) -> None:
    """Refuse a text in which the template changed the marks: what they stand around would become control tokens."""
    if Controls.is_lost(mark, text):
        raise RowRefused("control_tokens", "the template escapes or cuts the text that one is typed in")


def _pieces(text: str, mark: str) -> Pieces:
    """Cut a text at the marks: typed control tokens are at odd indices."""
    return text.split(mark) if mark else [text]


def _described(
    parts: list[Encoding], draft: _Draft, lead: list[int], prefix: list[int], suffix: list[int]
) -> list[Encoding]:
    """The parts of a row with what is known of them: which of how many, their lengths, and on the first the notes."""
    described = []
    for number, part in enumerate(parts, start=1):
        fed = part.input_ids[: part.responses[-1][0] if part.responses else 0]
        described.append(
            replace(
                part,
                part=(number, len(parts)),
                template_kwargs=draft.conversation.template_kwargs,
                lead_length=_num_shared(lead, part.input_ids),
                prefix_length=_num_shared(prefix, part.input_ids),
                suffix_length=_num_shared(suffix[::-1], fed[::-1]),
                notes=draft.notes if number == 1 else part.notes,
            )
        )
    return described


def _num_shared(some: list[int], others: list[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))
