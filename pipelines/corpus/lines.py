"""Lines of a corpus: decompressed in steps that cannot explode, and never held where they are too long.

A file may come from anybody. `zstandard` tells a finished frame from one that was cut, and gives all that its input
holds; so it gets little at a time. Of a line beyond the limit only the length is kept, and reading goes on behind it.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import zstandard

from schemas.errors import TruncatedFileError

_CHUNK_BYTES = 2**20
_ZSTD_STEP_BYTES = 2**12
"""A block of 4 bytes can hold 128 KiB: 4 KiB give 128 MiB at most, where a step of 1 MiB could give 32 GiB; and behind
a step that gave much the next are shorter. An ordinary file takes a sixth longer than in one step."""
_ZSTD_WINDOW_BYTES = 2**27
"""What the `zstd` command itself takes without being told otherwise."""


class LongLine(NamedTuple):
    """Stands for a line, or a row, that is longer than allowed."""

    size_bytes: int


class BadRow(NamedTuple):
    """Stands for a row of a table that cannot be one, and says why."""

    reason: str
    expected: str
    got: str


class Record(NamedTuple):
    """One raw record: a line's bytes, or a table's row as a dict; `offset` is its first byte, or a Parquet row's
    number."""

    offset: int
    value: bytes | dict[str, Any] | LongLine | BadRow


class _Held:
    """A line that is not yet at its end: its parts, as long as they are not too long together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._parts, self.size_bytes = limit, list[bytes](), 0

    def add(self, part: bytes) -> None:
        self.size_bytes += len(part)
        self._parts.append(part)
        if self.size_bytes > self._limit:
            self._parts.clear()

    def take(self) -> bytes | LongLine:
        """The whole line; and none is held any more."""
        size, line = self.size_bytes, b"".join(self._parts)
        self.size_bytes = 0
        self._parts.clear()
        return line if size <= self._limit else LongLine(size)


def lines(chunks: Iterable[bytes], limit: int) -> Iterator[Record]:
    """Lines of a stream of chunks, without their line ends."""
    held, offset = _Held(limit), 0
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            held.add(part)
            size = held.size_bytes
            yield Record(offset, held.take())
            offset += size + 1
        held.add(rest)
    if held.size_bytes:
        yield Record(offset, held.take())


def lines_between(file: IO[bytes], path: str, limit: int, *, start: int, end: int) -> Iterator[Record]:
    """Lines that begin in bytes `start` to `end`; the last may reach beyond.

    Raises:
        TruncatedFileError: the file ends before `end`.
    """
    buffered = io.BufferedReader(file, _CHUNK_BYTES) if isinstance(file, io.RawIOBase) else file
    offset = start
    if start:
        buffered.seek(start - 1)
        offset = _next_line(buffered, start, end)
    while offset < end:
        part = buffered.readline(_CHUNK_BYTES)
        if part.endswith(b"\n") and len(part) <= limit:  # nearly every line
            yield Record(offset, part[:-1])
            offset += len(part)
            continue
        held, ended = _Held(limit), False
        while part:
            ended = part.endswith(b"\n")
            held.add(part.removesuffix(b"\n"))
            part = b"" if ended else buffered.readline(_CHUNK_BYTES)
        if not ended and not held.size_bytes:
            raise TruncatedFileError(
                "a corpus file became shorter while it was read",
                where=path,
                expected=f"{end} bytes",
                got=offset,
                do="Start the run again; nothing was committed",
            )
        size = held.size_bytes + ended
        yield Record(offset, held.take())
        offset += size


def _next_line(file: IO[bytes], start: int, end: int) -> int:
    """Passes over the line that holds the byte before `start`: where the next one begins."""
    offset = start - 1
    while offset < end and (part := file.readline(_CHUNK_BYTES)):
        offset += len(part)
        if part.endswith(b"\n"):
            break
    return offset


def decompressed(file: IO[bytes], path: str) -> Iterator[bytes]:
    """Chunks of at most 1 MiB of all frames, one after the other.

    Raises:
        TruncatedFileError: a frame is not finished; a file of no bytes has not one.
    """
    steps = _gzip_steps(file) if path.endswith(".gz") else _zstd_steps(file)
    finished = False
    for data, finished in steps:  # noqa: B007
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]
    if not finished:
        raise TruncatedFileError(
            "a compressed corpus file ends inside a frame",
            where=path,
            do="Copy the file again; nothing was committed",
        )


def _gzip_steps(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """(what was decompressed, whether a frame ends there)."""
    frame = zlib.decompressobj(zlib.MAX_WBITS | 16)
    while chunk := file.read(_CHUNK_BYTES):
        while chunk:
            if frame.eof:
                frame = zlib.decompressobj(zlib.MAX_WBITS | 16)
            data = frame.decompress(chunk, _CHUNK_BYTES)
            chunk = frame.unused_data if frame.eof else frame.unconsumed_tail
            yield data, frame.eof
    while not frame.eof and (data := frame.decompress(b"", _CHUNK_BYTES)):
        yield data, frame.eof


def _zstd_steps(file: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """(what was decompressed, whether a frame ends there)."""
    frame, step = _new_frame(), _ZSTD_STEP_BYTES
    while chunk := file.read(_CHUNK_BYTES):
        start = 0
        while start < len(chunk):
            part = chunk[start : start + step]
            data = frame.decompress(part)
            start += len(part) - len(frame.unused_data)
            yield data, frame.eof
            frame = _new_frame() if frame.eof else frame
            step = _ZSTD_STEP_BYTES if len(data) < _CHUNK_BYTES else _ZSTD_STEP_BYTES // 64


def _new_frame() -> Any:  # zstandard does not name the class
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
