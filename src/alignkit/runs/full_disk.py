"""A file system that takes no more bytes, told from every other error."""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the C++ and Rust writers below us say instead of an errno; torch's names no cause at all.
_FULL_WORDS = ("No space left", "File too large", "quota exceeded", "iostream error", "inline_container.cc")


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether an error, or one that led to it, means that a file system would take no more bytes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error) for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_trouble(error: BaseException | None) -> str | None:
    """Say which file could not be written and why, if a full or read-only file system led to an error."""
    is_full = is_disk_full(error)
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*_FULL, errno.EROFS):
            return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        error = error.__cause__ or error.__context__
    return "a file cannot be written: its disk is full" if is_full else None
