"""Some byte ranges of a file, as the file that Arrow asks for."""

from __future__ import annotations

import io
from collections.abc import Mapping


class Segments(io.RawIOBase):
    """A file of which only some byte ranges are held: all that Arrow asks for when it reads one row group."""

    def __init__(self, segments: Mapping[int, bytes], size: int) -> None:
        self._segments, self._size, self._place = segments, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes | memoryview:
        """A view: Arrow takes it as it is."""
        end = self._size if size is None or size < 0 else min(self._size, self._place + size)
        data = self.fetch(self._place, end)
        self._place = end
        return data

    def fetch(self, start: int, end: int) -> bytes | memoryview:
        """The bytes of a range that lies inside one segment."""
        for begin, data in self._segments.items():
            if begin <= start and end <= begin + len(data):
                return memoryview(data)[start - begin : end - begin]
        raise OSError(f"bytes {start} to {end} were not fetched")
