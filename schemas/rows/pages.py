"""List columns straight from Parquet's data pages.

Arrow rebuilds lists value by value from Parquet's levels, which costs several times what their decompression does. In
the pages a long list's levels are one run, and its values stand in byte planes (BYTE_STREAM_SPLIT), which are joined at
memory speed. So a row group's entries are in flat arrays after decompression and one or two passes.

Guarantee: what is returned equals what Arrow reads. A page that holds anything else than our own writer's usual form
(nulls, empty lists, another encoding or page version) is left to Arrow: `read_lists` then says None.
What pages claim must have been bounded before (`schemas/shards/parquet_limits.py`); what means nothing is left to Arrow
too, whose error tells it.

Cost: a Python step for each page, and without compiled loops (`schemas/rows/kernels.py`) for each list: lists must then
have 4,096 values on average, and 64 for each byte of their levels; for shorter ones Arrow is as fast.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_left
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from jaxtyping import UInt8

from schemas.rows import kernels
from schemas.rows.blocks import array
from schemas.rows.columns import Column
from schemas.rows.parquet_thrift import parse_struct, parse_varint
from schemas.rows.ragged import Array

_DATA_PAGE, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9
_VALUES_BY_LIST, _VALUES_BY_LEVEL_BYTE = 4096, 64
_ZERO_BITS = tuple(tuple(bit for bit in range(8) if not byte >> bit & 1) for byte in range(256))


_MEANINGLESS = (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, zstandard.ZstdError)
_own = threading.local()
"""A thread's decompressor."""


class _UnusualError(Exception):
    """Arrow is to read this column."""


def read_lists(
    data: memoryview, chunk: pq.ColumnChunkMetaData, start: int, column: Column, num_lists: int
) -> pa.ListArray | None:
    """A column of one row group, whose elements are required; None where Arrow is to read it.

    `data` are the file's bytes from `start` on. The elements are int16, int32 or float32.
    """
    if chunk.compression != "ZSTD" or chunk.physical_type not in ("INT32", "FLOAT"):
        return None
    if not kernels.IS_COMPILED and chunk.num_values < _VALUES_BY_LIST * num_lists:
        return None
    begin = chunk.data_page_offset - start
    try:
        pages = data[begin : begin + chunk.total_compressed_size]
        found = _joined(pages, chunk.num_values, num_lists, column)
    except (_UnusualError, *_MEANINGLESS):
        return None
    return found if len(found) == num_lists else None


def _joined(data: memoryview, count: int, num_lists: int, column: Column) -> pa.ListArray:
    """All pages of a chunk that has `count` values in so many lists."""
    values = array(column.type.value_type.to_pandas_dtype(), count)
    full = 1 + column.nullable  # the level of a value that is there
    offsets = np.empty(num_lists + 1, np.int32)
    done, place, lists = 0, 0, 0
    while place < len(data):
        page, place = _page_at(data, place, full)
        if not 0 < page.num_values <= count - done:
            raise _UnusualError
        lists += _list_starts(page, done, offsets[lists:-1])
        _join_planes(page.planes, values[done : done + page.num_values])
        done += page.num_values
    if done != count or lists != num_lists or (num_lists and offsets[0]):
        raise _UnusualError
    offsets[-1] = count
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=column.type)


class _Page(NamedTuple):
    num_values: int
    repetitions: memoryview
    planes: UInt8[np.ndarray, "4 P"]


def _page_at(data: memoryview, place: int, full: int) -> tuple[_Page, int]:
    """The page whose header stands there, and where the next begins."""
    header, place = parse_struct(data, place)
    end = place + header.get(3, 0)
    inner = header.get(5)
    if header.get(1) != _DATA_PAGE or not isinstance(inner, dict) or end > len(data):
        raise _UnusualError
    if (inner.get(2), inner.get(3), inner.get(4)) != (_BYTE_STREAM_SPLIT, _RLE, _RLE):
        raise _UnusualError
    raw = _decompressed(data[place:end], header[2])
    count = inner[1]
    repetitions, place = _prefixed(raw, 0)
    definitions, place = _prefixed(raw, place)
    if definitions != _run(full, count):
        raise _UnusualError
    if len(raw) != place + 4 * count:
        raise _UnusualError
    return _Page(count, repetitions, np.frombuffer(raw, np.uint8, 4 * count, place).reshape(4, count)), end


def _decompressed(data: memoryview, size: int) -> memoryview:
    """One zstd frame of so many bytes: not by Arrow's allocator, which gives memory back and takes it anew."""
    if not hasattr(_own, "decompressor"):
        _own.decompressor = zstandard.ZstdDecompressor()
    found = memoryview(_own.decompressor.decompress(data, max_output_size=size))
    if len(found) != size:
        raise _UnusualError
    return found


def _prefixed(raw: memoryview, place: int) -> tuple[memoryview, int]:
    """Levels, whose length stands before them; and where they end."""
    if place + 4 > len(raw):
        raise _UnusualError
    (length,) = struct.unpack_from("<I", raw, place)
    return raw[place + 4 : place + 4 + length], place + 4 + length


def _run(level: int, count: int) -> bytes:
    """Equal levels as one run."""
    found, rest = bytearray(), count << 1
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes((*found, rest, level))


def _list_starts(page: _Page, first: int, starts: Array) -> int:
    """Writes where each list begins whose first value stands in a page, `first` being the page's own; how many do."""
    if kernels.IS_COMPILED:
        levels = np.frombuffer(page.repetitions, np.uint8)
        found: int = kernels.find_starts(levels, page.num_values, first, starts)
    else:
        if len(page.repetitions) * _VALUES_BY_LEVEL_BYTE > page.num_values:
            raise _UnusualError
        places = _zeros_of(page.repetitions, page.num_values)
        found = len(places) if len(places) <= len(starts) else -1
        starts[: max(found, 0)] = [first + place for place in places[: len(starts)]]
    if found < 0:
        raise _UnusualError
    return found


def _zeros_of(levels: bytes | memoryview, count: int) -> list[int]:
    """Where levels are 0, which begin a list: runs of one value, and eights of single bits, lowest first."""
    found: list[int] = []
    at = place = 0
    while at < count:
        head, place = parse_varint(levels, place)
        size = min(head >> 1, count - at)
        if head & 1:
            size = head >> 1
            for byte in levels[place : place + size]:
                found += [at + bit for bit in _ZERO_BITS[byte]]
                at += 8
            place += size
        else:
            if levels[place] == 0:
                found += range(at, at + size)
            place, at = place + 1, at + size
    return found[: bisect_left(found, count)]


def _join_planes(planes: UInt8[np.ndarray, "4 P"], into: Array) -> None:
    """Byte planes, lowest first, as numbers."""
    bits = into.view(f"u{into.dtype.itemsize}")
    if not kernels.IS_COMPILED:
        join_planes(planes, bits)
    elif into.dtype != np.int16:
        kernels.join_planes(planes, bits)
    elif not kernels.join_two_planes(planes, bits):
        raise _UnusualError  # below 0


def join_planes(planes: UInt8[np.ndarray, "4 P"], bits: Array) -> None:
    """As the compiled loops. A plane of zeros costs a look."""
    if bits.dtype == np.uint16:
        if planes[2:].max():  # below 0
            raise _UnusualError
        planes = planes[:2]
    bits[:] = planes[0]
    for index, plane in enumerate(planes[1:], start=1):
        if plane.max():
            bits |= plane.astype(bits.dtype) << bits.dtype.type(8 * index)
