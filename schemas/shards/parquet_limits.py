"""What a shard claims of its sizes is bounded before anything is made of it.

A row group's footer counts examples, tokens, positions and entries; the spec says how many of each an example may have;
each page says how many values it holds and how many bytes they take. A page of some bytes can claim gigabytes, and a
run of some bytes is a billion values. So the counts must fit the spec, the pages must fit the counts, and all of it
must fit what such a row group may take: 64 MiB, and 256 bytes for each that is stored, which no writer comes near.

Cost: a look at each page's header, of which a row group has about forty: a few tenths of a millisecond.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import REPAIR, CorruptionError
from schemas.limits import told
from schemas.policies import KeepAll
from schemas.rows.columns import BOX_COLUMNS, Column, columns
from schemas.rows.parquet_thrift import NoThriftError, parse_struct
from schemas.shards.seal import RowGroup
from schemas.spec import Spec

FREE_BYTES, BYTES_A_BYTE = 2**26, 256
"""What a row group may take in memory: so much, and so much for each of its bytes."""
_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_HEADER_OF = {_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}
_MAGIC = b"PAR1"
_ROW_GROUPS, _COLUMNS, _METADATA, _CHUNK_FIELDS = 4, 1, 3, (5, 7, 9, 11)
"""Numbers of a footer's fields."""
_VALUE_BYTES, _PAGE_BYTES = 8, 1024
"""What a number takes in a page with its levels, at most, and what a page has beside its values."""
_REPEATING = 7
"""An encoding in which a text repeats the one before it, so that some bytes are any number: no part of the format."""
_BYTES_AN_ITEM, _LEAST_LIMIT = 8, 1024
"""No item of a footer's longer lists takes less."""
_PHYSICAL = {"binary": "BYTE_ARRAY", "string": "BYTE_ARRAY", "float": "FLOAT"}

_V = rb"[\x80-\xff]{0,9}[\x00-\x7f]"
_USUAL_DATA, _USUAL_DICTIONARY = (
    re.compile(form.replace(b"V", _V), re.DOTALL)
    for form in (
        rb"\x15\x00\x15(V)\x15(V)(?:\x15V\x1c|\x2c)\x15(V)\x15(V)\x15V\x15V"
        rb"(?:\x1c(?:\x36V)?(?:\x28(?:\x10.{16}\x18\x10.{16}|\x04.{4}\x18\x04.{4})[\x11\x12]{0,2})?\x00)?\x00\x00",
        rb"\x15\x04\x15(V)\x15(V)(?:\x15V\x3c|\x4c)\x15(V)\x15(V)[\x11\x12]?\x00\x00",
    )
)
"""Headers as Arrow writes them, in a tenth of the time that field by field takes: a data page with the statistics of
hashes, of numbers or of nothing, and a dictionary."""


class Page(NamedTuple):
    """What a page's header says."""

    is_dictionary: bool
    num_values: int
    stored_bytes: int
    plain_bytes: int
    """After decompression."""
    encoding: int


def check_counts(group: RowGroup, spec: Spec, where: str) -> None:
    """Asserts that a row group's counts fit the spec, and its bytes.

    Raises:
        CorruptionError: naming the count.
    """
    fewest, most = spec.kind.position_bounds(group.examples, group.tokens)
    width = spec.max_entries if spec.score == "softmax" else spec.vocab_size
    whole = spec.score != "softmax" or isinstance(spec.keep, KeepAll)
    least = width if whole and not spec.kind.classes_are_tokens else 0
    for name, value, low, high in (
        ("examples", group.examples, 1, group.end - group.start),
        ("tokens", group.tokens, group.examples, group.examples * spec.kind.most_tokens(spec.max_length)),
        ("positions", group.positions, fewest, most),
        ("entries", group.entries, group.positions * least, group.positions * width),
    ):
        if not low <= value <= high:
            raise CorruptionError(
                f"a footer's {name} are more, or fewer, than its row group can have",
                where=where,
                expected=f"{low:,} to {high:,}",
                got=f"{value:,}",
                do=REPAIR,
            )
    _refuse_large(4 * sum(one.values(group) for one in _plan(spec)), group, where)


class Fetched(NamedTuple):
    """A row group's bytes, or some of them: the file's from `start` on."""

    data: memoryview
    start: int
    group: RowGroup
    spec: Spec


def check_pages(
    fetched: Fetched, metadata: pq.RowGroupMetaData, where: str, asked: Collection[str] | None = None
) -> dict[str, pq.ColumnChunkMetaData]:
    """Asserts that the pages of the columns in `asked` (None: all) hold what the footer counts; all chunks by path.

    Raises:
        CorruptionError: naming the column.
    """
    chunks = {chunk.path_in_schema: chunk for chunk in map(metadata.column, range(metadata.num_columns))}
    total = 0
    for one in _plan(fetched.spec):
        if asked is not None and one.column.name not in asked:
            continue
        size = _plain_bytes(fetched, chunks.get(one.path), one)
        if size is None:
            raise CorruptionError(
                f"column {one.column.name} has pages that are not what its footer counts",
                where=where,
                do=REPAIR,
            )
        total += size
    _refuse_large(total, fetched.group, where)
    return chunks


class _Chunk(NamedTuple):
    """A column of a row group, as a footer has it."""

    num_values: int
    total_compressed_size: int
    data_page_offset: int
    dictionary_page_offset: int

    @property
    def has_dictionary_page(self) -> bool:
        return self.dictionary_page_offset > 0


def _chunks(data: memoryview) -> list[_Chunk]:
    """All columns of all row groups of a file that nothing vouches for.

    Read without Arrow, which ends the *process* where a column's statistics of sizes are as many as they should not be
    (25.0: an exception in C++ that no Cython declaration lets through).
    """
    length = int.from_bytes(data[-8:-4], "little")
    if bytes(data[-4:]) != _MAGIC or not 0 < length <= len(data) - 12:
        raise NoThriftError("the file does not end as Parquet ends")
    footer, _ = parse_struct(data[: len(data) - 8], len(data) - 8 - length)
    metadata = [chunk[_METADATA] for group in footer[_ROW_GROUPS] for chunk in group[_COLUMNS]]
    found = [_Chunk(*(one.get(field, 0) for field in _CHUNK_FIELDS)) for one in metadata]
    if not all(type(number) is int and number >= 0 for one in found for number in one):
        raise NoThriftError("a footer says no numbers")
    return found


def chunk_span(chunk: pq.ColumnChunkMetaData | _Chunk) -> tuple[int, int]:
    """Where a column's pages begin and end in the file."""
    begin: int = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < begin:
        begin = chunk.dictionary_page_offset
    return begin, begin + chunk.total_compressed_size


def check_file(data: bytes, where: str) -> None:
    """Asserts that a Parquet file of whatever columns holds no more than its bytes can be worth.

    Raises:
        CorruptionError: it would take more, or is none.
    """
    most = FREE_BYTES + BYTES_A_BYTE * len(data)
    with told("a file cannot be read", where, also=(TypeError, AttributeError)):
        chunks = _chunks(memoryview(data))
        total = sum(chunk.num_values for chunk in chunks)
        for chunk in chunks:
            begin, end = chunk_span(chunk)
            size = _walk(memoryview(data)[begin:end], chunk.num_values) if begin >= 0 else None
            total = most + 1 if size is None else total + size
    if total > most:
        raise CorruptionError("a file would take more memory than its bytes can be worth", where=where)


def parse_metadata(data: bytes) -> pq.FileMetaData:
    """A Parquet footer. Lists in it are no longer than its bytes can hold: each would be made room for at once."""
    longest = max(_LEAST_LIMIT, len(data) // _BYTES_AN_ITEM)
    limits = {"thrift_string_size_limit": len(data), "thrift_container_size_limit": longest}
    with pq.ParquetFile(pa.BufferReader(data), **limits) as file:
        return file.metadata


def _plain_bytes(fetched: Fetched, chunk: pq.ColumnChunkMetaData | None, expected: _Expected) -> int | None:
    """Bytes of a column's pages after decompression, at most; None where they are not what the footer counts."""
    if chunk is None or chunk.physical_type != expected.kind:
        return None
    (begin, end), start, group = chunk_span(chunk), fetched.start, fetched.group
    count = chunk.num_values
    inside = max(group.start, start) <= begin <= end <= min(group.end, start + len(fetched.data))
    if not (inside and group.examples <= count <= expected.values(group) + group.examples):
        return None
    is_text = expected.kind == "BYTE_ARRAY"
    return _walk(fetched.data[begin - start : end - start], count, is_number=not is_text, repeats=is_text)


class _Expected(NamedTuple):
    """What a column of a spec has at most: so many values for each of what the footer counts."""

    column: Column
    path: str
    kind: str
    """Parquet's physical type."""
    of: str
    times: int

    def values(self, group: RowGroup) -> int:
        counted: int = getattr(group, self.of)
        return counted * self.times


@functools.lru_cache(maxsize=16)
def _plan(spec: Spec) -> tuple[_Expected, ...]:
    return tuple(_expected(column, spec) for column in columns(spec))


def _expected(column: Column, spec: Spec) -> _Expected:
    leaf = column.type.value_type if pa.types.is_list(column.type) else column.type
    widths = {feature.column: feature.width for feature in spec.features}
    of, times = "positions", 1
    if leaf is column.type or column.name in widths:
        of, times = "examples", widths.get(column.name, 1)
    elif column.name in ("input_ids", "token_type_ids"):
        of = "tokens"
    elif column.name.startswith(("kept_", "sampled_", "logits")) or leaf == pa.float32():
        of = "entries"
    if column.name == "logsumexp":
        of, times = "positions", len(spec.temperatures)
    of, times = BOX_COLUMNS.get(column.name, (of, times))
    return _Expected(column, column.path, _PHYSICAL.get(str(leaf), "INT32"), of, times)


def _walk(data: memoryview, count: int, *, is_number: bool = False, repeats: bool = False) -> int | None:
    """As `_plain_bytes`: page after page, until all values have been seen."""
    place = seen = total = entry_bytes = 0
    while seen < count:
        page, place = _page(data, place)
        most = page.num_values * _VALUE_BYTES + _PAGE_BYTES
        place += page.stored_bytes
        sizes = page.num_values >= 0 and page.stored_bytes >= 0 and page.plain_bytes >= 0
        if not sizes or place > len(data) or (page.plain_bytes > most and is_number):
            return None
        if page.encoding == _REPEATING:
            return None
        if page.is_dictionary:
            if seen or total:
                return None
            entry_bytes = page.plain_bytes if repeats else 0
        else:
            seen += page.num_values
            total += page.num_values * entry_bytes
        total += page.plain_bytes
    return total if seen == count and place == len(data) else None


def _page(data: memoryview, place: int) -> tuple[Page, int]:
    """The header that stands there, and where its page begins."""
    for form, is_dictionary in ((_USUAL_DATA, False), (_USUAL_DICTIONARY, True)):
        if usual := form.match(data, place):
            plain, stored, count, encoding = map(_signed, usual.groups())
            return Page(is_dictionary, count, stored, plain, encoding), usual.end()
    header, place = parse_struct(data, place)
    kind = header[1]
    inner = header.get(_HEADER_OF.get(kind, 0) if type(kind) is int else 0)
    if not isinstance(inner, dict):
        raise NoThriftError("a page's header is of no kind that is known")
    encoding = inner[4 if kind == _DATA_2 else 2]
    numbers = (inner[1], header[3], header[2], encoding)
    if not all(type(number) is int for number in numbers):
        raise NoThriftError("a page's header says no numbers")
    return Page(kind == _DICTIONARY, *numbers), place


def _signed(digits: bytes) -> int:
    """A zigzag number in sevens of bits."""
    value = 0
    for byte in reversed(digits):
        value = value << 7 | byte & 127
    return value >> 1 ^ -(value & 1)


def _refuse_large(num_bytes: int, group: RowGroup, where: str) -> None:
    most = FREE_BYTES + BYTES_A_BYTE * (group.end - group.start)
    if num_bytes > most:
        raise CorruptionError(
            "a row group would take more memory than its bytes can be worth",
            where=where,
            expected=f"at most {most:,} bytes",
            got=f"{num_bytes:,}",
            do=REPAIR,
        )
