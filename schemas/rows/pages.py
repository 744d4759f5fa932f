"""List columns straight from Parquet's data pages, where their lists are long.

Arrow rebuilds lists value by value from Parquet's levels; for lists of thousands of values that costs three times what
their decompression does. In the pages a long list's levels are one run, and its values stand in byte planes
(BYTE_STREAM_SPLIT), which numpy joins at memory speed. So a row group's entries are in flat arrays after decompression
and one or two passes.

Guarantee: what is returned equals what Arrow reads. A page that holds anything else than our own writer's usual form
(nulls, empty lists, short lists, another encoding or page version) is left to Arrow: `read_lists` then says None.
What pages claim must have been bounded before (`schemas/shards/parquet_limits.py`); what means nothing is left to Arrow
too, whose error tells it.

Cost: a Python step for each list and page; so lists must have 4,096 values on average, and 64 for each byte of their
levels: for shorter ones Arrow is as fast.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from schemas.rows.parquet_thrift import parse_struct, parse_varint
from schemas.rows.ragged import Array

_DATA_PAGE, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9
_VALUES_BY_LIST, _VALUES_BY_LEVEL_BYTE = 4096, 64
_ZERO_BITS = tuple(tuple(bit for bit in range(8) if not byte >> bit & 1) for byte in range(256))


_MEANINGLESS = (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError, struct.error)


class _UnusualError(Exception):
    """Arrow is to read this column."""


def read_lists(
    data: memoryview, chunk: pq.ColumnChunkMetaData, start: int, of: pa.ListType, num_lists: int
) -> pa.ListArray | None:
    """A column of one row group, whose lists and elements are required; None where Arrow is to read it.

    `data` are the file's bytes from `start` on. The elements are int16, int32 or float32.
    """
    if chunk.compression != "ZSTD" or chunk.physical_type not in ("INT32", "FLOAT"):
        return None
    if chunk.num_values < _VALUES_BY_LIST * num_lists:
        return None
    begin = chunk.data_page_offset - start
    try:
        found = _joined(data[begin : begin + chunk.total_compressed_size], chunk.num_values, of)
    except (_UnusualError, *_MEANINGLESS):
        return None
    return found if len(found) == num_lists else None


def _joined(data: memoryview, count: int, of: pa.ListType) -> pa.ListArray:
    """All pages of a chunk that has `count` values."""
    values = np.empty(count, of.value_type.to_pandas_dtype())
    starts: list[int] = []
    done, place = 0, 0
    while place < len(data):
        page, place = _page_at(data, place)
        if not 0 < page.num_values <= count - done:
            raise _UnusualError
        starts += (done + start for start in _list_starts(page.repetitions, page.num_values))
        _join_planes(page.planes, values[done : done + page.num_values])
        done += page.num_values
    if done != count or starts[:1] != [0]:
        raise _UnusualError
    return pa.ListArray.from_arrays(pa.array([*starts, count], pa.int32()), pa.array(values), type=of)


class _Page(NamedTuple):
    num_values: int
    repetitions: bytes
    planes: UInt8[np.ndarray, "4 P"]


def _page_at(data: memoryview, place: int) -> tuple[_Page, int]:
    """The page whose header stands there, and where the next begins."""
    header, place = parse_struct(data, place)
    end = place + header.get(3, 0)
    inner = header.get(5)
    if header.get(1) != _DATA_PAGE or not isinstance(inner, dict) or end > len(data):
        raise _UnusualError
    if (inner.get(2), inner.get(3), inner.get(4)) != (_BYTE_STREAM_SPLIT, _RLE, _RLE):
        raise _UnusualError
    raw = memoryview(pa.decompress(pa.py_buffer(data[place:end]), header[2], codec="zstd"))
    count = inner[1]
    repetitions, place = _prefixed(raw, 0)
    definitions, place = _prefixed(raw, place)
    if len(repetitions) * _VALUES_BY_LEVEL_BYTE > count or definitions != _run_of_ones(count):
        raise _UnusualError
    if len(raw) != place + 4 * count:
        raise _UnusualError
    return _Page(count, repetitions, np.frombuffer(raw, np.uint8, 4 * count, place).reshape(4, count)), end


def _prefixed(raw: memoryview, place: int) -> tuple[bytes, int]:
    """Levels, whose length stands before them; and where they end."""
    if place + 4 > len(raw):
        raise _UnusualError
    (length,) = struct.unpack_from("<I", raw, place)
    return bytes(raw[place + 4 : place + 4 + length]), place + 4 + length


def _run_of_ones(count: int) -> bytes:
    """The levels of values that are all there: one run."""
    found, rest = bytearray(), count << 1
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes((*found, rest, 1))


def _list_starts(levels: bytes, count: int) -> list[int]:
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
    """Byte planes, lowest first, as numbers. A plane of zeros costs a look."""
    if into.dtype == np.int16:
        if planes[2:].max():  # below 0
            raise _UnusualError
        planes = planes[:2]
    bits = into.view(f"u{into.dtype.itemsize}")
    bits[:] = planes[0]
    for index, plane in enumerate(planes[1:], start=1):
        if plane.max():
            bits |= plane.astype(bits.dtype) << bits.dtype.type(8 * index)
