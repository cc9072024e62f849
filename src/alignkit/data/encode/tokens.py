"""Text to token ids, many texts in one call: the tokenizer's threads are worth it from a few hundred on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

Pieces = list[str]  # a stretch of text, cut around control tokens typed in it, which are at odd indices


def ids_of_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, split_special_tokens: bool = False
) -> list[list[int]]:
    """Return the ids of each text alone, with nothing added; `split_special_tokens` spells special tokens out.

    Equal texts are tokenized once and get one list: headings, and the prompt of a pair, come again and again.
    """
    if not texts:
        return []
    different = {text: at for at, text in enumerate(dict.fromkeys(texts))}
    encoded = tokenizer(
        list(different),
        add_special_tokens=False,
        split_special_tokens=split_special_tokens,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # lengths are our own concern
    )
    ids: list[list[int]] = encoded["input_ids"]
    return [ids[different[text]] for text in texts]


def ids_of_pieces(rows: Sequence[list[Pieces]], tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    """Return the ids of every stretch of every row, each tokenized alone, typed control tokens spelled out."""
    written = [piece for row in rows for pieces in row for piece in pieces[::2]]
    typed = [piece for row in rows for pieces in row for piece in pieces[1::2]]
    ids = iter(ids_of_texts(written, tokenizer))
    spelled = iter(ids_of_texts(typed, tokenizer, split_special_tokens=True))
    return [[flat(next(spelled if at % 2 else ids) for at in range(len(pieces))) for pieces in row] for row in rows]


def num_tokens_before(pieces: Pieces, end: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens of a stretch that begin before the character `end`; each piece boundary is one character.

    Raises:
        ValueError: the tokenizer is a slow one, which does not tell where its tokens lie.
    """
    count = 0
    for at, piece in enumerate(pieces):
        if end <= 0:
            break
        offsets = tokenizer(
            piece, add_special_tokens=False, split_special_tokens=bool(at % 2), return_offsets_mapping=True
        )["offset_mapping"]
        count += sum(1 for start, _ in offsets if start < end)
        end -= len(piece) + 1
    return count


def flat(lists: Iterable[list[T]]) -> list[T]:
    """Join lists into one."""
    return [item for some in lists for item in some]
