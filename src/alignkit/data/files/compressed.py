"""Files read as the bytes they hold, compressed or not."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

COMPRESSIONS = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error)


_PACKED_BYTES = 1 << 8  # of Zstandard, unpacked at once: they hold 8 MB at most, where 64 KiB could hold 2 GB


def open_file(file: str) -> BinaryIO:
    """Open a file to read bytes from, unpacked where its name says it is packed.

    Raises:
        READ_ERRORS: now or while reading: no permission, damaged or cut short.
    """
    if file.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(file))
    if file.lower().endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(_ZstdFile(file), 1 << 16))
    return Path(file).open("rb")


class _ZstdFile(io.RawIOBase):
    """What Zstandard frames hold. The package's own reader takes a file cut inside a frame for a whole one."""

    def __init__(self, file: str) -> None:
        self._packed = io.FileIO(file)
        self._frame: Any = None
        self._rest, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._packed.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._output:
            packed = self._rest or self._packed.read(_PACKED_BYTES)
            if not packed and self._frame is None:
                return 0
            if not packed:
                raise EOFError("the compressed file is cut short")
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                self._output = memoryview(self._frame.decompress(packed))
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from error
            self._rest = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size
