"""Reading a corpus: files -> pieces that can be read in parallel -> raw records with their byte offsets.

Beam's own readers take a compressed file that ends inside a frame for a shorter file, without a word. So frames are
decompressed here, and one that is not finished is a `TruncatedFileError`. Beam's filesystems open the files, and the
hub's client those of its data sets.

A corpus may come from anybody, so what one piece takes in memory is bounded whatever it claims: files are decompressed
in steps that give 128 MiB at most, a line longer than `max_line_bytes` is passed over and told as a `LongLine`, and a
Parquet file is read few rows at a time. What is no plain file (a pipe, a folder) is refused before it is opened.
"""

from __future__ import annotations

import os
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipelines.config import MAX_LINE_BYTES, CorpusConfig
from pipelines.corpus import hub_files
from pipelines.corpus.image_files import IMAGE_FORMATS, IMAGE_SUFFIXES, image_records
from pipelines.corpus.lines import LongLine, Record, decompressed, lines, lines_between
from pipelines.corpus.tables import TABLES, header_of, table_records
from schemas.errors import CorpusError, TruncatedFileError, UsageError

PIECE_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_TEXT_BY_BYTE = 4
"""Bytes of text in a byte of a compressed file, or of Parquet."""
_PARQUET_ROWS = 256
"""Rows of a batch: of strings that stand in a dictionary each may be long."""
_FORMATS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "tar",
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
}
_COMPRESSED = (".gz", ".zst", ".zstd")
LINES_OF = ("jsonl", "text")
"""Formats whose records are lines."""
UNREADABLE = (OSError, BeamIOError, hub_files.TRANSPORT_ERROR, zlib.error, zstandard.ZstdError)
"""What is raised where a file cannot be opened or read."""


class Piece(NamedTuple):
    """A part of a file: the lines that begin in bytes `start` to `end`, or row groups; `end` -1 means to its end."""

    path: str
    format: str
    start: int
    end: int
    listed: int = 0
    """Bytes of a file that is read whole, as its filesystem lists it."""


def find_pieces(corpus: CorpusConfig) -> list[Piece]:
    """Every piece of every file that the globs match, each file once.

    Raises:
        UsageError: a glob matches nothing, or a file's name tells no format.
    """
    sizes: dict[str, int] = {}
    for pattern in corpus.files:
        sizes |= _matched(pattern)
    return [piece for path in sorted(sizes) for piece in _pieces(path, sizes[path], corpus)]


def read_piece(
    piece: Piece, columns: Iterable[str], max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Record]:
    """The records of one piece, in order; Parquet is read by row group, only `columns`.

    Raises:
        TruncatedFileError: a compressed file ends inside a frame.
        CorpusError: the file cannot be read.
        UsageError: a table's header names no fields.
    """
    try:
        with open_file(piece.path) as file:
            if piece.format in IMAGE_FORMATS:
                chunks = decompressed(file, piece.path) if is_compressed(piece.path) else None
                yield from image_records(file, piece.path, piece.format, max_line_bytes, chunks)
            elif piece.format == "parquet":
                yield from _parquet_records(file, piece, columns, max_line_bytes)
            elif piece.format in TABLES:
                yield from table_records(_chunks(file, piece), piece.path, piece.format, max_line_bytes)
            elif is_compressed(piece.path):
                yield from lines(decompressed(file, piece.path), max_line_bytes)
            else:
                yield from lines_between(file, piece.path, max_line_bytes, start=piece.start, end=piece.end)
    except (*UNREADABLE, pa.ArrowException) as error:
        raise CorpusError(
            "a corpus file cannot be read", where=piece.path, got=str(error) or repr(error)
        ) from error


def read_header(piece: Piece, max_line_bytes: int = MAX_LINE_BYTES) -> list[str]:
    """The names of the fields of a table, from the file's beginning alone.

    Raises:
        UsageError: its first row names no fields.
        CorpusError: the file cannot be read.
    """
    try:
        with open_file(piece.path) as file:
            return header_of(_chunks(file, piece), piece.path, piece.format, max_line_bytes)
    except UNREADABLE as error:
        raise CorpusError(
            "a corpus file cannot be read", where=piece.path, got=str(error) or repr(error)
        ) from error


def _chunks(file: IO[bytes], piece: Piece) -> Iterator[bytes]:
    """The bytes of a whole file, decompressed."""
    if is_compressed(piece.path):
        yield from decompressed(file, piece.path)
        return
    size = 0
    while chunk := file.read(_CHUNK_BYTES):
        size += len(chunk)
        yield chunk
    if size < piece.listed:
        raise TruncatedFileError(
            "a corpus file became shorter while it was read",
            where=piece.path,
            expected=f"{piece.listed} bytes",
            got=size,
            do="Start the run again; nothing was committed",
        )


def open_file(path: str) -> IO[bytes]:
    """A file as it stands, for reading at any place."""
    if hub_files.is_on_hub(path):
        return hub_files.opened(path)
    file: IO[bytes] = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return file


def is_compressed(path: str) -> bool:
    """Whether a file's name says so."""
    return path.endswith(_COMPRESSED)


def is_part(piece: Piece) -> bool:
    """Whether a file of lines is read in several pieces."""
    return piece.start > 0 or piece.end - piece.start == PIECE_BYTES


def text_bytes(pieces: Iterable[Piece]) -> int:
    """About how many bytes of text some pieces hold; of whole files, which may be compressed, it is a guess."""
    return sum(_TEXT_BY_BYTE * p.listed if p.end < 0 else p.end - p.start for p in pieces)


def _matched(pattern: str) -> dict[str, int]:
    if hub_files.is_on_hub(pattern):
        return hub_files.matched(pattern)
    try:
        found = FileSystems.match([pattern])[0].metadata_list
    except (BeamIOError, ValueError) as error:
        raise UsageError("--corpus cannot be listed", where=pattern, got=str(error)) from error
    if not found:
        raise UsageError(
            "--corpus matches no file", where=pattern, do="Check the path; quote globs on the command line"
        )
    sizes = {metadata.path: metadata.size_in_bytes for metadata in found}
    for path in sizes:
        _refuse_special(path)
    return sizes


def _refuse_special(path: str) -> None:
    """A pipe would be waited for without end, and read once only; a folder cannot be read at all."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # on another filesystem, or found missing when it is opened
        return
    if not stat.S_ISREG(mode):
        raise UsageError(
            "--corpus names what is no plain file",
            where=path,
            got="a folder" if stat.S_ISDIR(mode) else "a pipe or a device",
            do="Name its files, as in 'folder/*.jsonl'" if stat.S_ISDIR(mode) else "Write it to a file first",
        )


def _pieces(path: str, size: int, corpus: CorpusConfig) -> Iterator[Piece]:
    name = next((path.removesuffix(s) for s in _COMPRESSED if path.endswith(s)), path)
    known = next((f for suffix, f in _FORMATS.items() if name.lower().endswith(suffix)), None)
    kind = known if corpus.format == "auto" else corpus.format
    if kind is None:
        raise UsageError(
            "a corpus file's name tells no format",
            where=path,
            expected=", ".join(_FORMATS),
            do="Rename it, or say --format",
        )
    if kind in ("parquet", *TABLES, *IMAGE_FORMATS) or name != path:
        yield Piece(path, kind, 0, -1, size)
        return
    for start in range(0, size, PIECE_BYTES):
        yield Piece(path, kind, start, min(start + PIECE_BYTES, size))


def _parquet_records(file: IO[bytes], piece: Piece, columns: Iterable[str], limit: int) -> Iterator[Record]:
    with _spooled(file, piece.path) if is_compressed(piece.path) else nullcontext(file) as source:
        schema = pq.read_schema(source)
        present = [name for name in columns if name in schema.names]
        strings = [name for name in present if pa.types.is_string(schema.field(name).type)]
        parquet = pq.ParquetFile(
            source, read_dictionary=strings
        )  # a value that stands there often is held once
        rows = _PARQUET_ROWS if present == strings else _PARQUET_ROWS // 16  # images are larger than texts
        row = 0
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=present):
                for index in range(len(batch)):
                    yield Record(row, _row_value(batch.slice(index, 1), limit))
                    row += 1


def _spooled(file: IO[bytes], path: str) -> IO[bytes]:
    """A decompressed file on disk: Parquet is read from its end."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115  closed by who reads it
    for chunk in decompressed(file, path):
        spool.write(chunk)
    spool.seek(0)
    return spool


def _row_value(row: pa.RecordBatch, limit: int) -> bytes | dict[str, Any] | LongLine:
    """One row as a dict; one with a string that is not UTF-8 as that string's bytes, to be rejected alone."""
    if len(row.columns) == 0:
        return {}
    size = sum(_size_bytes(column) for column in row.columns)
    if size > limit:
        return LongLine(size)
    try:
        value = row.to_pylist(maps_as_pydicts="lossy")[0]
    except UnicodeDecodeError as error:
        return bytes(error.object)
    return {name: _without_nulls(part) for name, part in value.items()}


def _size_bytes(column: pa.Array) -> int:
    """Of a column of one row."""
    if pa.types.is_dictionary(column.type):
        return _size_bytes(column.dictionary_decode())
    return int(column.nbytes)


def _without_nulls(value: Any) -> Any:
    """Objects without their nulls: Parquet has no absent keys, only empty ones."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
