"""Too little memory, told in a line: while what was done, and which settings to lower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from alignkit.errors import AlignkitError, MemoryShortage

# What torch's allocators and the drivers below it say where they raise a plain RuntimeError, and what torch says of a
# data worker that the system ended, as it does where memory is short.
_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_KILLED = "is killed by signal: Killed"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that the device or the machine has no more memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = f"{error} {error.__cause__ or error.__context__}"  # a dead data worker is told twice
    return isinstance(error, RuntimeError) and any(words in said for words in (*_WORDS, _KILLED))


@contextmanager
def explain_out_of_memory(
    lower: str, *, doing: Callable[[], str] | None = None, then: Callable[[], str] = str
) -> Iterator[None]:
    """Say what to lower where the block runs out of memory.

    Args:
        lower: the settings.
        doing: says while what it happened, asked when it has.
        then: says how to go on, asked when it has.

    Raises:
        MemoryShortage: in place of whatever the allocator raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AlignkitError) or not is_out_of_memory(error):
            raise
        where = f"{doing()}: " if doing is not None else ""
        raise MemoryShortage(f"{where}out of memory: {lower}{then()}") from error
