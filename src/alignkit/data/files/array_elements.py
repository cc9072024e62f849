"""How long the elements of a JSON array are, found in its bytes before they are decoded."""

from __future__ import annotations

import re

_MARK = re.compile(rb'["\[\]{},]')
_REST_OF_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class ArrayElements:
    """Goes along the bytes of a JSON text; one that is no array is one element.

    Args:
        max_bytes: of an element.

    Attributes:
        number: of the element that was come to, counted from 1.
    """

    def __init__(self, max_bytes: int) -> None:
        self.number = 1
        self._max_bytes = max_bytes
        self._is_array: bool | None = None  # not known before the first mark
        self._depth = 0
        self._in_string = False
        self._size = 0  # bytes of the element before this chunk
        self._carried = b""

    def is_too_long(self, chunk: bytes) -> bool:
        """Tell whether an element is, as far as this chunk goes."""
        chunk = self._carried + chunk
        num_backslashes = len(chunk) - len(chunk.rstrip(b"\\"))
        self._carried = b"\\" * (num_backslashes % 2)  # what it escapes is in the next chunk
        end = len(chunk) - len(self._carried)
        begun = position = 0
        while position < end:
            mark = (_REST_OF_STRING.match if self._in_string else _MARK.search)(chunk, position, end)
            if mark is None:
                break
            position = mark.end()
            if self._in_string:
                self._in_string = False
            elif self._ends_element(mark[0]):
                if self._size + position - begun > self._max_bytes + 1:
                    return True
                self._size, begun = 0, position
                self.number += 1
        self._size += end - begun
        return self._size > self._max_bytes + 1  # and the comma or bracket behind it

    def _ends_element(self, mark: bytes) -> bool:
        if self._is_array is None:
            self._is_array = mark == b"["
        if mark == b'"':
            self._in_string = True
        elif mark in b"[{":
            self._depth += 1
        elif mark in b"]}":
            self._depth -= 1
        return mark == b"," and self._depth == 1 and self._is_array
