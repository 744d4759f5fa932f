"""Columns of rows to Arrow's arrays and back: buffers are used as they are where a column has no nulls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import REPAIR, CorruptionError
from schemas.identity import HASH_BYTES
from schemas.rows.ragged import Array, Ragged, offsets_of, spans

ColumnData = Ragged | Array
HASHES = ("example_id", "document_hash")


def to_arrow(column: ColumnData, field: pa.Field) -> pa.Array:
    """One column as a shard's table holds it."""
    if isinstance(column, Ragged):
        mask = None if column.valid is None else pa.array(~column.valid)
        values = pa.array(column.values, field.type.value_type)
        return pa.ListArray.from_arrays(
            pa.array(column.offsets, pa.int32()), values, type=field.type, mask=mask
        )
    if field.name in HASHES:
        offsets = pa.py_buffer(np.arange(len(column) + 1, dtype=np.int32) * HASH_BYTES)
        data = pa.py_buffer(np.ascontiguousarray(column))
        return pa.Array.from_buffers(pa.binary(), len(column), [None, offsets, data])
    return pa.array(column, field.type)


def from_arrow(chunked: pa.ChunkedArray, field: pa.Field, where: str) -> ColumnData:
    """One column of a table.

    Raises:
        CorruptionError: a null where none may be, or a hash of another length.
    """
    # combine_chunks copies, also where there is one chunk, as in each row group that was read
    array = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    inner = array.values if pa.types.is_list(field.type) else array
    if (array.null_count and not field.nullable) or (inner is not array and inner.null_count):
        raise CorruptionError(f"column {field.name} has a null", where=where, do=REPAIR)
    if inner is not array:
        valid = None if not array.null_count else np.asarray(array.is_valid())
        return _rows_of_lists(array, valid)
    if field.name in HASHES:
        return _fixed_hashes(array, field.name, where)
    return np.asarray(array.to_pylist(), object) if field.type == pa.string() else np.asarray(array)


def _rows_of_lists(array: pa.ListArray, valid: Any) -> Ragged:
    """Offsets and values of a list array, cut to its slice; a null row's list counts as empty."""
    raw = np.asarray(array.offsets).astype(np.int64)
    values = np.asarray(array.values)
    if valid is None:
        return Ragged(values=values[raw[0] : raw[-1]], offsets=raw - raw[0])
    lengths = np.where(valid, np.diff(raw), 0)
    offsets = offsets_of(lengths)
    return Ragged(values=values[spans(raw[:-1], lengths, offsets)], offsets=offsets, valid=valid)


def _fixed_hashes(array: pa.BinaryArray, name: str, where: str) -> Array:
    lengths = np.asarray(pc.binary_length(array))
    if not (lengths == HASH_BYTES).all():
        raise CorruptionError(
            f"column {name} has a hash that is not {HASH_BYTES} bytes", where=where, do=REPAIR
        )
    data = b"".join(array.to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, HASH_BYTES)
