"""A row that is longer than the model may see: dropped, or cut at its start or its end, and always recorded."""

from __future__ import annotations

from dataclasses import replace

from alignkit.choices import Overlength
from alignkit.data.batches.batching import IGNORED
from alignkit.data.encode.masking import Encoding


def apply_length(encoding: Encoding, *, max_length: int, policy: Overlength) -> tuple[Encoding | None, str]:
    """Hold a row to `max_length` tokens.

    Args:
        encoding: the whole row.
        max_length: most tokens in a row.
        policy: `drop`; `keep_end`, which cuts the prompt after its prefix and before its suffix, and
            keeps the last response whole; or `keep_start`, which cuts the end off.

    Returns:
        The row, or None where it is dropped; and why: empty (it fits), `too_long` or `nothing_to_learn` (dropped),
        `cut_start`, or `cut_end` (the last response lost its end token).
    """
    if len(encoding.input_ids) <= max_length:
        return encoding, ""
    encoding = _without_rest(encoding)
    if len(encoding.input_ids) <= max_length:
        return encoding, ""
    if policy is Overlength.drop:
        return None, "too_long"
    row = _keep_end(encoding, max_length) if policy is Overlength.keep_end else _keep_start(encoding, max_length)
    if row is None:
        return None, "too_long"
    if all(label == IGNORED for label in row.labels[1:]):
        return None, "nothing_to_learn"
    return row, "cut_start" if policy is Overlength.keep_end else "cut_end"


def needed_length(encoding: Encoding) -> int:
    """Count the tokens of a row up to the last one with loss: what comes after may always go."""
    return max((i for i, label in enumerate(encoding.labels, start=1) if label != IGNORED), default=0)


def _without_rest(encoding: Encoding) -> Encoding:
    """The row up to the last token with loss: what comes after teaches nothing."""
    length = needed_length(encoding)
    return replace(encoding, input_ids=encoding.input_ids[:length], labels=encoding.labels[:length])


def _keep_end(encoding: Encoding, max_length: int) -> Encoding | None:
    length, num_prefix = len(encoding.input_ids), encoding.prefix_length
    start = length - (max_length - num_prefix)  # tokens from here on stay
    whole_from = encoding.responses[-1][0] - encoding.suffix_length if encoding.responses else length
    if start > whole_from:
        return None
    labels, responses = list(encoding.labels), []
    for begin, end in encoding.responses:
        if begin - encoding.suffix_length >= start:
            responses.append((begin - start + num_prefix, end - start + num_prefix))
        else:  # without its heading or its beginning a response is no answer to anything
            labels[begin:end] = [IGNORED] * (end - begin)
    return replace(
        encoding,
        input_ids=encoding.input_ids[:num_prefix] + encoding.input_ids[start:],
        labels=labels[:num_prefix] + labels[start:],
        responses=tuple(responses),
        cuts={"input_ids": num_prefix},
    )


def _keep_start(encoding: Encoding, max_length: int) -> Encoding:
    return replace(
        encoding,
        input_ids=encoding.input_ids[:max_length],
        labels=encoding.labels[:max_length],
        responses=tuple((a, min(b, max_length)) for a, b in encoding.responses if a < max_length),
        suffix_length=0,
        cuts={"input_ids": max_length},
    )
