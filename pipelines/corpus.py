"""Reading a corpus: files -> pieces that can be read in parallel -> raw records with their byte offsets.

Beam's own readers take a compressed file that ends inside a frame for a shorter file, without a word. So frames are
decompressed here, and one that is not finished is a `TruncatedFileError`. Beam's filesystems open the files.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipelines.config import CorpusConfig
from schemas.errors import CorpusError, TruncatedFileError, UsageError

PIECE_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
}
_COMPRESSED = (".gz", ".zst", ".zstd")


class Piece(NamedTuple):
    """A part of a file: the lines that begin in bytes `start` to `end`, or row groups; `end` -1 means to its end."""

    path: str
    format: str
    start: int
    end: int


class Record(NamedTuple):
    """One raw record: a line's bytes, or a Parquet row as a dict; `offset` is its first byte, or its row number."""

    offset: int
    value: bytes | dict[str, Any]


@runtime_checkable
class _Frame(Protocol):
    """A decompressor of one frame: what `zlib` and `zstandard` have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def find_pieces(corpus: CorpusConfig) -> list[Piece]:
    """Every piece of every file that the globs match, each file once.

    Raises:
        UsageError: a glob matches nothing, or a file's name tells no format.
    """
    sizes: dict[str, int] = {}
    for pattern in corpus.files:
        sizes |= _matched(pattern)
    return [piece for path in sorted(sizes) for piece in _pieces(path, sizes[path], corpus)]


def read_piece(piece: Piece, columns: Iterable[str]) -> Iterator[Record]:
    """The records of one piece, in order; Parquet is read by row group, only `columns`.

    Raises:
        TruncatedFileError: a compressed file ends inside a frame.
        CorpusError: the file cannot be read.
    """
    try:
        with FileSystems.open(piece.path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            if piece.format == "parquet":
                yield from _parquet_records(file, piece, columns)
            elif piece.path.endswith(_COMPRESSED):
                yield from _lines(_decompressed(file, piece.path))
            else:
                yield from _lines_of_piece(file, piece)
    except (OSError, BeamIOError, zlib.error, zstandard.ZstdError, pa.ArrowException) as error:
        raise CorpusError(
            "a corpus file cannot be read", where=piece.path, got=str(error) or repr(error)
        ) from error


def _matched(pattern: str) -> dict[str, int]:
    try:
        found = FileSystems.match([pattern])[0].metadata_list
    except (BeamIOError, ValueError) as error:
        raise UsageError("--corpus cannot be listed", where=pattern, got=str(error)) from error
    if not found:
        raise UsageError(
            "--corpus matches no file", where=pattern, do="Check the path; quote globs on the command line"
        )
    return {metadata.path: metadata.size_in_bytes for metadata in found}


def _pieces(path: str, size: int, corpus: CorpusConfig) -> Iterator[Piece]:
    name = next((path.removesuffix(s) for s in _COMPRESSED if path.endswith(s)), path)
    known = next((f for suffix, f in _FORMATS.items() if name.endswith(suffix)), None)
    kind = known if corpus.format == "auto" else corpus.format
    if kind is None:
        raise UsageError(
            "a corpus file's name tells no format",
            where=path,
            expected=", ".join(_FORMATS),
            do="Rename it, or say --format",
        )
    if kind == "parquet" or name != path:
        yield Piece(path, kind, 0, -1)
        return
    for start in range(0, size, PIECE_BYTES):
        yield Piece(path, kind, start, min(start + PIECE_BYTES, size))


def _lines(chunks: Iterable[bytes]) -> Iterator[Record]:
    """Lines of a stream of chunks, without their line ends."""
    rest, offset = b"", 0
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield Record(offset, line)
            offset += len(line) + 1
    if rest:
        yield Record(offset, rest)


def _lines_of_piece(file: IO[bytes], piece: Piece) -> Iterator[Record]:
    """Lines that begin inside the piece; the last may end in the next one's bytes."""
    offset = piece.start
    if piece.start:
        file.seek(piece.start - 1)
        offset += len(file.readline()) - 1
    buffered = io.BufferedReader(file, _CHUNK_BYTES) if isinstance(file, io.RawIOBase) else file
    while offset < piece.end:
        line = buffered.readline()
        if not line:
            raise TruncatedFileError(
                "a corpus file became shorter while it was read",
                where=piece.path,
                expected=f"{piece.end} bytes",
                got=offset,
                do="Start the run again; nothing was committed",
            )
        yield Record(offset, line.removesuffix(b"\n"))
        offset += len(line)


def _decompressed(file: IO[bytes], path: str) -> Iterator[bytes]:
    """The chunks of all frames, one after the other. A file of no bytes has not even one frame: it was cut."""
    frame: _Frame | None = _new_frame(path)
    while chunk := file.read(_CHUNK_BYTES):
        while chunk:
            frame = frame or _new_frame(path)
            yield frame.decompress(chunk)
            chunk = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise TruncatedFileError(
            "a compressed corpus file ends inside a frame",
            where=path,
            do="Copy the file again; nothing was committed",
        )


def _new_frame(path: str) -> _Frame:
    if path.endswith(".gz"):
        return zlib.decompressobj(zlib.MAX_WBITS | 16)
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _parquet_records(file: IO[bytes], piece: Piece, columns: Iterable[str]) -> Iterator[Record]:
    source = file
    if piece.path.endswith(_COMPRESSED):
        source = io.BytesIO(b"".join(_decompressed(file, piece.path)))
    parquet = pq.ParquetFile(source)
    present = [name for name in columns if name in parquet.schema_arrow.names]
    row = 0
    for group in range(parquet.num_row_groups):
        for batch in parquet.iter_batches(row_groups=[group], columns=present):
            for value in _row_values(batch):
                yield Record(row, value)
                row += 1


def _row_values(batch: pa.RecordBatch) -> Iterator[bytes | dict[str, Any]]:
    """Each row as a dict; one with a string that is not UTF-8 as that string's bytes, to be rejected alone."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield error.object
            return
        for index in range(len(batch)):
            yield from _row_values(batch.slice(index, 1))
