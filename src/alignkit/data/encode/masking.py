"""What exactly the loss sees: conversations become token ids and labels, laid side by side.

Text is cut where the assistant starts and stops speaking, and every stretch is tokenized on its own. So what inference
feeds (the same stretches up to the answer, by the same function) is the beginning of what training fed, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from alignkit.config import ControlTokens, TrainOn
from alignkit.data.batches.batching import IGNORED
from alignkit.data.encode.control_tokens import Controls
from alignkit.data.encode.rendering import RowRefused, Segment, Template, join_segments
from alignkit.data.encode.sandbox import bounded
from alignkit.data.encode.supervision import supervise
from alignkit.data.encode.templates import adds_bos
from alignkit.data.encode.tokens import flat, ids_of_pieces, ids_of_texts
from alignkit.data.rows.conversation import Conversation, Message

__all__ = ["Encoding", "RowRefused", "encode", "encode_prompt", "encode_prompts", "encode_rows"]

NEUTRALIZED = "neutralized control tokens"
SERVED_DIFFERENTLY = "the prompt tokenizes differently as one string (as a server does it)"


@dataclass(frozen=True, slots=True)
class Encoding:
    """One row as the trainer gets it, not yet cut to a length.

    Attributes:
        input_ids: the tokens.
        labels: the same ids where there is loss, else -100.
        responses: `(start, stop)` of every assistant turn with loss, end token included.
        prefix_length: tokens that begin the row before the first user's content: bos, system message, first heading.
        suffix_length: tokens right before the last response that every prompt ends with, such as its heading.
        notes: what happened to the row that does not change its fate.
    """

    input_ids: list[int]
    labels: list[int]
    responses: tuple[tuple[int, int], ...] = ()
    prefix_length: int = 0
    suffix_length: int = 0
    notes: tuple[str, ...] = ()


def encode_rows(
    conversations: Sequence[Conversation],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train_on: TrainOn,
    control_tokens: ControlTokens,
) -> list[Encoding | str]:
    """Encode many rows with one call of the tokenizer.

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
    """Encode one row as `encode_rows` does.

    Raises:
        RowRefused: the row is left out; the text shows where.
    """
    (row,) = _Encoder.of(template, tokenizer, control_tokens).supervised([conversation], train_on)
    if isinstance(row, RowRefused):
        raise row
    return row


def encode_prompts(
    conversations: Sequence[Conversation],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    control_tokens: ControlTokens,
) -> list[list[int] | str]:
    """Encode conversations that end with the user as inference feeds them: the tokens training has before the answer.

    Returns:
        For each prompt its tokens, or the reason why it is left out.
    """
    prompts = _Encoder.of(template, tokenizer, control_tokens).prompts(conversations)
    return [prompt.reason if isinstance(prompt, RowRefused) else prompt for prompt in prompts]


def encode_prompt(
    conversation: Conversation,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    control_tokens: ControlTokens,
) -> list[int]:
    """Encode one prompt as `encode_prompts` does.

    Raises:
        RowRefused: the template has no place for the conversation, or a control token is typed in it.
    """
    (prompt,) = _Encoder.of(template, tokenizer, control_tokens).prompts([conversation])
    if isinstance(prompt, RowRefused):
        raise prompt
    return prompt


@dataclass(frozen=True)
class _Draft:
    """A row between text and tokens.

    Attributes:
        segments: its text, with `mark` around each control token typed in it.
        loss: whether each segment carries loss.
        mark: a character, or empty where nothing is marked.
        prefix: what its text begins with before the first user's content.
    """

    segments: list[Segment]
    loss: list[bool]
    mark: str = ""
    prefix: str = ""

    def pieces(self) -> list[list[str]]:
        """Each segment cut at the marks: typed control tokens are at odd indices."""
        return [segment.text.split(self.mark) if self.mark else [segment.text] for segment in self.segments]

    def num_before_last_response(self) -> int:
        turns = [i for i, segment in enumerate(self.segments) if self.loss[i] and segment.message is not None]
        return turns[-1] if turns else 0


@dataclass(frozen=True)
class _Encoder:
    template: Template
    tokenizer: PreTrainedTokenizerBase
    policy: ControlTokens
    controls: Controls

    @classmethod
    def of(cls, template: Template, tokenizer: PreTrainedTokenizerBase, policy: ControlTokens) -> _Encoder:
        return cls(
            template, tokenizer, policy, Controls.of(tokenizer, end_token=template.end_token, end_id=template.end_id)
        )

    def supervised(self, conversations: Sequence[Conversation], train_on: TrainOn) -> list[Encoding | RowRefused]:
        prefixes: dict[tuple[str, ...], str] = {}
        drafts = self._drafts(conversations, partial(self._row, train_on=train_on, prefixes=prefixes))
        rows = iter(self._encodings([draft for draft in drafts if isinstance(draft, _Draft)]))
        return [next(rows) if isinstance(draft, _Draft) else draft for draft in drafts]

    def prompts(self, conversations: Sequence[Conversation]) -> list[list[int] | RowRefused]:
        drafts = self._drafts(conversations, self._prompt)
        sound = [draft for draft in drafts if isinstance(draft, _Draft)]
        tokens = ids_of_pieces([draft.pieces() for draft in sound], self.tokenizer)
        rows = iter(self._forgery(draft, ids) or flat(ids) for draft, ids in zip(sound, tokens, strict=True))
        return [next(rows) if isinstance(draft, _Draft) else draft for draft in drafts]

    def _drafts(
        self, conversations: Sequence[Conversation], render: Callable[[Conversation], _Draft]
    ) -> list[_Draft | RowRefused]:
        drafts: list[_Draft | RowRefused] = []
        with bounded(sum(len(conversation.messages) for conversation in conversations)):
            for conversation in conversations:
                try:
                    drafts.append(render(conversation))
                except RowRefused as refusal:
                    drafts.append(refusal)
        return drafts

    def _read(self, conversation: Conversation) -> tuple[Sequence[Message], str]:
        found = self.controls.find(conversation.messages)
        if found and self.policy is ControlTokens.refuse:
            raise RowRefused("control_tokens", found)
        return self.controls.mark(conversation.messages) if found else (conversation.messages, "")

    def _row(self, conversation: Conversation, *, train_on: TrainOn, prefixes: dict[tuple[str, ...], str]) -> _Draft:
        messages, mark = self._read(conversation)
        if conversation.plain:
            segments = self._plain(messages[0].content)
            return _Draft(segments, [True] * len(segments), mark, prefix=join_segments(segments[:-2]))
        segments, loss = supervise(messages, self.template, train_on)
        system = tuple(m.content for m in takewhile(lambda m: m.role == "system", conversation.messages))
        if system not in prefixes:  # few differ, rendering costs
            prefixes[system] = self.template.prompt_prefix(conversation.messages)
        return _Draft(segments, loss, mark, prefixes[system])

    def _prompt(self, conversation: Conversation) -> _Draft:
        messages, mark = self._read(conversation)
        if conversation.plain:
            segments = self._plain(messages[0].content)[:-1]
        else:
            segments = self.template.render(messages, add_generation_prompt=True)
        return _Draft(segments, [False] * len(segments), mark)

    def _plain(self, text: str) -> list[Segment]:
        bos = [Segment(str(self.tokenizer.bos_token))] if adds_bos(self.tokenizer) else []
        return [*bos, Segment(text), Segment(str(self.tokenizer.eos_token or self.template.end_token))]

    def _encodings(self, drafts: list[_Draft]) -> Iterator[Encoding | RowRefused]:
        tokens = ids_of_pieces([draft.pieces() for draft in drafts], self.tokenizer)
        served = self._served(drafts)
        prefixes = list(dict.fromkeys(draft.prefix for draft in drafts))
        *prefix_ids, suffix_ids = ids_of_texts([*prefixes, self.template.prompt_suffix], self.tokenizer)
        ids_of_prefix = dict(zip(prefixes, prefix_ids, strict=True))
        for draft, ids, served_ids in zip(drafts, tokens, served, strict=True):
            fed = flat(ids[: draft.num_before_last_response()])
            row = self._forgery(draft, ids) or self._side_by_side(draft, ids)
            if isinstance(row, Encoding):
                row = replace(
                    row,
                    prefix_length=_num_shared(ids_of_prefix[draft.prefix], row.input_ids),
                    suffix_length=_num_shared(suffix_ids[::-1], fed[::-1]),
                    notes=(NEUTRALIZED,) * bool(draft.mark) + (SERVED_DIFFERENTLY,) * (served_ids not in (None, fed)),
                )
            yield row

    def _side_by_side(self, draft: _Draft, tokens: list[list[int]]) -> Encoding | RowRefused:
        input_ids: list[int] = []
        labels: list[int] = []
        responses = []
        for segment, ids, loss in zip(draft.segments, tokens, draft.loss, strict=True):
            if loss and segment.message is not None:
                if ids[-1:] != [self.template.end_id]:
                    return RowRefused("a trained turn does not end in the end token", repr(segment.text[-40:]))
                responses.append((len(input_ids), len(input_ids) + len(ids)))
            input_ids += ids
            labels += ids if loss else [IGNORED] * len(ids)
        if all(label == IGNORED for label in labels[1:]):  # nothing predicts a row's first token
            return RowRefused("nothing_to_learn")
        return Encoding(input_ids, labels, tuple(responses))

    def _forgery(self, draft: _Draft, tokens: list[list[int]]) -> RowRefused | None:
        """Text that the tokenizer, by its own normalisation, turns into a control token, or cannot spell out."""
        for pieces, ids in zip(draft.pieces(), tokens, strict=True):
            num_written = sum(len(self.controls.pattern.findall(text)) for text in pieces[::2])
            if sum(map(self.controls.ids.__contains__, ids)) > num_written:
                return RowRefused("control_tokens", "the tokenizer makes one of ordinary text")
            if len(pieces) > 1 and self.tokenizer.decode(ids, clean_up_tokenization_spaces=False) != "".join(pieces):
                return RowRefused("control_tokens", "the tokenizer cannot spell it in ordinary characters")
        return None

    def _served(self, drafts: list[_Draft]) -> list[list[int] | None]:
        """The prompt of each last response as a server tokenizes it, as one text; None where it is one text here."""
        histories = [flat(draft.pieces()[: draft.num_before_last_response()]) for draft in drafts]
        ids = iter(ids_of_texts(["".join(pieces) for pieces in histories if len(pieces) > 1], self.tokenizer))
        return [next(ids) if len(pieces) > 1 else None for pieces in histories]


def _num_shared(some: list[int], others: list[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))
