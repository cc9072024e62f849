"""What exactly the loss sees: conversations become token ids and labels, laid side by side.

Text is cut where the assistant begins and stops to speak, and every stretch is tokenised on its own. So what inference
feeds (the same stretches up to the answer, by the same function) is the beginning of what training fed, token by token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from alignkit.config import ControlTokens, TrainOn
from alignkit.data.batching import IGNORED
from alignkit.data.control_tokens import Controls
from alignkit.data.conversation import Conversation, Message
from alignkit.data.rendering import bounded
from alignkit.data.templates import RowRefused, Segment, Template, adds_bos, joined, parting

NEUTRALISED = "neutralised control tokens"
OTHERWISE = "history tokenised otherwise by a server"


@dataclass(frozen=True, slots=True)
class Encoding:
    """One row as the trainer gets it, not yet cut to a length.

    Attributes:
        input_ids: the tokens.
        labels: the same ids where there is loss, else -100.
        responses: `(start, stop)` of every assistant turn with loss, end token included.
        head_length: tokens that begin the row before the first user's content: bos, system message, first heading.
        cue_length: tokens right before the last response that every prompt ends with, such as its heading.
        notes: what happened to the row that does not change its fate.
    """

    input_ids: list[int]
    labels: list[int]
    responses: tuple[tuple[int, int], ...] = ()
    head_length: int = 0
    cue_length: int = 0
    notes: tuple[str, ...] = ()


def encode_rows(
    conversations: Sequence[Conversation],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: TrainOn,
    control_tokens: ControlTokens,
) -> list[Encoding | str]:
    """Encodes many rows with one call of the tokenizer.

    Args:
        conversations: the rows.
        template: bound to `tokenizer`.
        tokenizer: of the model.
        train_on: which turns carry loss; a turn's own `train` flag wins.
        control_tokens: what to do with special tokens typed in a message.

    Returns:
        For each row its encoding, or the reason why it is left out.
    """
    encoder = _Encoder.of(template, tokenizer, control_tokens)
    rows = encoder.supervised(conversations, train_on)
    return [row.reason if isinstance(row, RowRefused) else row for row in rows]


def encode(
    conversation: Conversation,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: TrainOn,
    control_tokens: ControlTokens,
) -> Encoding:
    """Encodes one row as `encode_rows` does.

    Raises:
        RowRefused: the row is left out; the text shows where.
    """
    (row,) = _Encoder.of(template, tokenizer, control_tokens).supervised([conversation], train_on)
    if isinstance(row, RowRefused):
        raise row
    return row


def encode_prompt(
    conversation: Conversation,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    control_tokens: ControlTokens,
) -> list[int]:
    """What inference feeds for a conversation that ends with the user: the tokens training has before the answer.

    Raises:
        RowRefused: the template has no place for the conversation, or a control token is typed in it.
    """
    return _Encoder.of(template, tokenizer, control_tokens).prompt(conversation)


@dataclass
class _Draft:
    """A row between text and tokens.

    Attributes:
        segments: its text, with `mark` around each control token typed in it.
        loss: whether each segment carries loss.
        mark: a character, or empty where nothing is marked.
        head: what its text begins with before the first user's content.
    """

    segments: list[Segment]
    loss: list[bool]
    mark: str = ""
    head: str = ""

    def pieces(self) -> list[list[str]]:
        """Each segment cut at the marks: typed control tokens are at odd places."""
        return [segment.text.split(self.mark) if self.mark else [segment.text] for segment in self.segments]

    def history(self) -> list[Segment]:
        """The segments before the last response, where it is more than one piece of text; else none."""
        turns = [i for i, s in enumerate(self.segments) if self.loss[i] and s.message is not None]
        segments = self.segments[: turns[-1]] if turns else []
        return segments if len(segments) > 1 or any(self.mark and self.mark in s.text for s in segments) else []


@dataclass(frozen=True)
class _Encoder:
    template: Template
    tokenizer: PreTrainedTokenizerBase
    policy: ControlTokens
    controls: Controls

    @classmethod
    def of(cls, template: Template, tokenizer: PreTrainedTokenizerBase, policy: ControlTokens) -> _Encoder:
        return cls(template, tokenizer, policy, Controls.of(tokenizer, template.end_token))

    def supervised(self, conversations: Sequence[Conversation], train_on: TrainOn) -> list[Encoding | RowRefused]:
        heads: dict[tuple[str, ...], str] = {}
        drafts = [self._try_draft(conversation, train_on, heads) for conversation in conversations]
        sound = [draft for draft in drafts if isinstance(draft, _Draft)]
        rows = iter(self._encodings(sound))
        return [next(rows) if isinstance(draft, _Draft) else draft for draft in drafts]

    def prompt(self, conversation: Conversation) -> list[int]:
        messages, mark = self._read(conversation.messages)
        if conversation.plain:
            segments = self._plain(messages)[:-1]
        else:
            with bounded():
                segments = self.template.render(messages, add_generation_prompt=True)
        draft = _Draft(segments, [False] * len(segments), mark)
        (tokens,) = self._tokens([draft])
        return [i for ids in tokens for i in ids]

    def _read(self, messages: Sequence[Message]) -> tuple[Sequence[Message], str]:
        found = self.controls.find(messages)
        if found and self.policy is ControlTokens.refuse:
            raise RowRefused("control_tokens", found)
        return self.controls.mark(messages) if found else (messages, "")

    def _plain(self, messages: Sequence[Message]) -> list[Segment]:
        bos = [Segment(str(self.tokenizer.bos_token))] if adds_bos(self.tokenizer) else []
        return [*bos, Segment(messages[0].content), Segment(self.tokenizer.eos_token or self.template.end_token)]

    def _try_draft(
        self, conversation: Conversation, train_on: TrainOn, heads: dict[tuple[str, ...], str]
    ) -> _Draft | RowRefused:
        try:
            with bounded(len(conversation.messages)):
                return self._draft(conversation, train_on, heads)
        except RowRefused as refusal:
            return refusal

    def _draft(self, conversation: Conversation, train_on: TrainOn, heads: dict[tuple[str, ...], str]) -> _Draft:
        messages, mark = self._read(conversation.messages)
        if conversation.plain:
            segments = self._plain(messages)
            return _Draft(segments, [True] * len(segments), mark, head=joined(segments[:-2]))
        trained = _trained(messages, train_on)
        segments = self.template.render(messages)
        for turn in trained:
            if messages[turn].role == "assistant":
                self._check_prefix(messages, turn, segments)
        loss = _loss(segments, len(messages), trained, train_on)
        system = tuple(m.content for m in takewhile(lambda m: m.role == "system", conversation.messages))
        if system not in heads:
            heads[system] = self.template.head(conversation.messages)
        return _Draft(segments, loss, mark, heads[system])

    def _check_prefix(self, messages: Sequence[Message], turn: int, segments: list[Segment]) -> None:
        fed = self.template.render(messages[:turn], add_generation_prompt=True)
        before = list(takewhile(lambda segment: segment.message != turn, segments))
        if before == fed:
            return
        if any(message.role == "assistant" for message in messages[turn + 1 :]):
            reason = (
                "the template renders earlier turns otherwise later on (data.train_on=last_turn trains the last alone)"
            )
        else:
            reason = "the generation prompt is not the beginning of the trained text"
        raise RowRefused(reason, parting(joined(fed), joined(before)))

    def _encodings(self, drafts: list[_Draft]) -> Iterable[Encoding | RowRefused]:
        tokens = self._tokens(drafts)
        otherwise = self._otherwise(drafts, tokens)
        heads = list(dict.fromkeys(draft.head for draft in drafts))
        *head_ids, cue_ids = self._call([*heads, self.template.cue])
        ids_of = dict(zip(heads, head_ids, strict=True))
        for draft, segment_ids, differs in zip(drafts, tokens, otherwise, strict=True):
            try:
                yield self._assemble(draft, segment_ids, ids_of[draft.head], cue_ids, (OTHERWISE,) if differs else ())
            except RowRefused as refusal:
                yield refusal

    def _assemble(
        self, draft: _Draft, tokens: list[list[int]], head_ids: list[int], cue_ids: list[int], notes: tuple[str, ...]
    ) -> Encoding:
        input_ids: list[int] = []
        labels: list[int] = []
        responses = []
        for segment, ids, loss in zip(draft.segments, tokens, draft.loss, strict=True):
            if loss and segment.message is not None:
                if ids[-1] != self.template.end_id:
                    raise RowRefused("a turn does not end in the end token", repr(segment.text[-40:]))
                responses.append((len(input_ids), len(input_ids) + len(ids)))
            input_ids += ids
            labels += ids if loss else [IGNORED] * len(ids)
        if all(label == IGNORED for label in labels[1:]):  # nothing predicts a row's first token
            raise RowRefused("nothing_to_learn")
        prompt = input_ids[: responses[-1][0]] if responses else []
        return Encoding(
            input_ids,
            labels,
            tuple(responses),
            head_length=_num_shared(head_ids, input_ids),
            cue_length=_num_shared(cue_ids[::-1], prompt[::-1]),
            notes=(NEUTRALISED, *notes) if draft.mark else notes,
        )

    def _tokens(self, drafts: list[_Draft]) -> list[list[list[int]]]:
        """Ids of every segment of every draft, from one call of the tokenizer; typed control tokens are spelled out."""
        pieces = [piece for draft in drafts for pieces in draft.pieces() for piece in enumerate(pieces)]
        written = iter(self._call([text for at, text in pieces if at % 2 == 0]))
        spelled = iter(self._call([text for at, text in pieces if at % 2], split_special_tokens=True))
        return [
            [
                [i for at, _ in enumerate(pieces) for i in next(spelled if at % 2 else written)]
                for pieces in draft.pieces()
            ]
            for draft in drafts
        ]

    def _call(self, texts: list[str], *, split_special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _otherwise(self, drafts: list[_Draft], tokens: list[list[list[int]]]) -> list[bool]:
        """Whether a server, which tokenises the prompt of the last response as one text, feeds other ids than we do."""
        histories = [draft.history() for draft in drafts]
        asked = [
            joined(h).replace(d.mark, "") if d.mark else joined(h) for d, h in zip(drafts, histories, strict=True) if h
        ]
        served = iter(self._call(asked))
        return [
            bool(history) and next(served) != [i for ids in segment_ids[: len(history)] for i in ids]
            for history, segment_ids in zip(histories, tokens, strict=True)
        ]


def _trained(messages: Sequence[Message], train_on: TrainOn) -> list[int]:
    """Numbers of the messages that carry loss: the flag in the data wins over the setting."""
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    chosen = {
        TrainOn.assistant: turns,
        TrainOn.last_turn: turns[-1:],
        TrainOn.everything: range(len(messages)),
    }[train_on]
    trained = [i for i, message in enumerate(messages) if (i in chosen if message.train is None else message.train)]
    for i in trained:
        if messages[i].role != "assistant" and train_on is not TrainOn.everything:
            raise RowRefused(f"train: true on a {messages[i].role} message needs data.train_on=everything")
    return trained


def _loss(segments: list[Segment], num_messages: int, trained: list[int], train_on: TrainOn) -> list[bool]:
    """Whether each segment carries loss; what is between two turns does under `everything` alone."""
    flags = []
    for at, segment in enumerate(segments):
        if segment.message is not None:
            flags.append(segment.message in trained)
            continue
        since = segments[at - 1].message if at else None
        until = segments[at + 1].message if at + 1 < len(segments) else num_messages
        between = {i in trained for i in range(0 if since is None else since + 1, until or 0)}
        if len(between) > 1:
            raise RowRefused("train: false on a part of a prompt only")  # its tokens may reach into the other part's
        flags.append(train_on is TrainOn.everything and False not in between)
    return flags


def _num_shared(some: list[int], others: list[int]) -> int:
    """How many ids both begin with."""
    return next((n for n, (a, b) in enumerate(zip(some, others, strict=False)) if a != b), min(len(some), len(others)))
