"""Rows in memory: the columns of some examples as flat numpy arrays, as they are on disk (codes, not decoded).

Writer and reader share this value: the teacher's batches become `Rows`, a shard's row group is `Rows`, and a training
batch is `rows.take(...)`. Arrow's buffers are used as they are where a column has no nulls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int32, Int64

from schemas.codec import decode_logprobs, dequantise
from schemas.columns import shard_schema
from schemas.errors import CorruptionError
from schemas.identity import HASH_BYTES
from schemas.ragged import Array, Ragged, offsets_of, spans
from schemas.spec import Feature, Spec

ColumnData = Ragged | Array
_HASHES = ("example_id", "document_hash")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """R examples. `data[name]` is a `Ragged` for a list column, else an array of length R.

    Hash columns are uint8 `[R, 16]`, text columns arrays of Python strings (or None).
    """

    spec: Spec
    data: Mapping[str, ColumnData]

    def __len__(self) -> int:
        return len(self.data["example_id"])

    def ragged(self, name: str) -> Ragged:
        """A list column."""
        column = self.data[name]
        assert isinstance(column, Ragged), name
        return column

    def array(self, name: str) -> Array:
        """A column with one value a row."""
        column = self.data[name]
        assert not isinstance(column, Ragged), name
        return column

    @property
    def example_ids(self) -> list[bytes]:
        return [row.tobytes() for row in self.array("example_id")]

    @property
    def input_ids(self) -> Ragged:
        return self.ragged("input_ids")

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids.values)

    @property
    def position_offsets(self) -> Int64[np.ndarray, " R1"]:
        """Offsets of each row's positions among all N."""
        if self.spec.score == "softmax":
            return self.ragged("top_logprob").offsets
        offsets: Array = self.ragged("logits").offsets // self.spec.vocab_size
        return offsets

    @property
    def num_positions(self) -> int:
        return int(self.position_offsets[-1])

    def position_index(self) -> Int32[np.ndarray, " N"]:
        """Which token of its example each position stands on.

        A null row means every token but the last, in order (`check` has asserted that it has so many positions).
        """
        offsets = self.position_offsets
        implied = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], np.diff(offsets))
        stored = self.ragged("position_index")
        index: Array = implied.astype(np.int32)
        index[np.repeat(stored.validity, np.diff(offsets))] = stored.values
        return index

    @property
    def kept_counts(self) -> Int32[np.ndarray, " N"]:
        counts: Array = self.ragged("num_kept").values
        return counts

    @property
    def kept_offsets(self) -> Int64[np.ndarray, " N1"]:
        """Offsets of each position's kept entries among all E."""
        return offsets_of(self.kept_counts)

    @property
    def kept_ids(self) -> Int32[np.ndarray, " E"]:
        return self.ragged("kept_ids").values

    def kept_logprobs(self) -> Float32[np.ndarray, " E"]:
        """Log-probabilities of the kept entries under the *full* softmax, within half a code step."""
        return decode_logprobs(
            self.ragged("kept_codes").values,
            self.kept_counts,
            self.ragged("top_logprob").values,
            self.spec.code_step_nats,
        )

    def logsumexp(self, temperature: float = 1.0) -> Float32[np.ndarray, " N"]:
        """log sum exp(logit / T) over all of V.

        Raises:
            ValueError: the spec does not declare the temperature.
        """
        declared = self.spec.temperatures
        if temperature not in declared:
            raise ValueError(f"the cache has logsumexp at temperatures {declared}, not at {temperature}")
        return self.ragged("logsumexp").values[declared.index(temperature) :: len(declared)]

    def feature(self, feature: Feature) -> Float32[np.ndarray, "R D"]:
        """One pooled feature of each row."""
        values = self.ragged(feature.column).values.reshape(len(self), feature.width)
        if feature.dtype == "float32":
            return values
        return dequantise(values, self.array(feature.scale_column))

    def take(self, rows: Int64[np.ndarray, " M"]) -> Rows:
        """The given rows, in the given order."""
        taken = {name: _take(column, rows) for name, column in self.data.items()}
        return type(self)(spec=self.spec, data=taken)

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one part after the other."""
        names = parts[0].data
        joined = {name: _concatenate([part.data[name] for part in parts]) for name in names}
        return cls(spec=parts[0].spec, data=joined)

    def to_arrow(self) -> pa.Table:
        """The table that a shard holds."""
        schema = shard_schema(self.spec)
        arrays = [_to_arrow(self.data[field.name], field) for field in schema]
        return pa.Table.from_arrays(arrays, schema=schema)

    @classmethod
    def from_arrow(cls, table: pa.Table, spec: Spec, where: str) -> Rows:
        """Rows from a table with all columns of the spec, or some; other columns are ignored.

        Raises:
            CorruptionError: a null where none may be, or lists whose lengths do not fit together.
        """
        schema = shard_schema(spec)
        known = [name for name in schema.names if name in table.column_names]
        data = {name: _from_arrow(table[name], schema.field(name), where) for name in known}
        rows = cls(spec=spec, data=data)
        if len(known) == len(schema.names):
            rows.check(where)
        return rows

    def check(self, where: str) -> None:
        """Asserts that the lists of each row fit together, and that counts and ids are in range.

        Raises:
            CorruptionError: naming the first column that does not fit.
        """
        for name, expected in self._expected_lengths().items():
            column = self.ragged(name)
            self._refuse_length(name, column.lengths, expected, column.validity, where)
        self._check_places(where)
        if self.spec.score == "softmax":
            _refuse_range("num_kept", self.kept_counts, 1, self.spec.max_kept, where)
            _refuse_range("kept_ids", self.kept_ids, 0, self.spec.vocab_size - 1, where)
            self._check_gold(where)

    def _check_places(self, where: str) -> None:
        """A null `position_index` is every token but the last; one that is stored lies inside its example."""
        places, tokens = self.ragged("position_index"), self.input_ids.lengths
        positions = np.diff(self.position_offsets)
        self._refuse_length("position_index (null)", positions, tokens - 1, ~places.validity, where)
        ends = tokens - 1 if self.spec.task == "causal-lm" else tokens
        outside = places.values >= np.repeat(ends, places.lengths)
        if outside.any() or (places.values < 0).any():
            raise CorruptionError("column position_index points outside its example", where=where)

    def _check_gold(self, where: str) -> None:
        """A gold log-probability stands wherever a label is known; a causal LM's labels are its next tokens."""
        known = self.ragged("labels").validity | (self.spec.task == "causal-lm")
        if (known != self.ragged("label_logprob").validity).any():
            raise CorruptionError("column label_logprob is null where a label is known, or not", where=where)

    def _refuse_length(self, name: str, lengths: Array, expected: Array, asked: Array, where: str) -> None:
        wrong = np.flatnonzero((lengths != expected) & asked)
        if wrong.size:
            raise CorruptionError(
                f"column {name} has a list of the wrong length",
                where=f"{where}, example {self.array('example_id')[wrong[0]].tobytes().hex()}",
                expected=int(expected[wrong[0]]),
                got=int(lengths[wrong[0]]),
            )

    def _expected_lengths(self) -> dict[str, Array]:
        positions, tokens = np.diff(self.position_offsets), self.input_ids.lengths
        expected = {"position_index": positions}
        if self.spec.has_token_type_ids:
            expected["token_type_ids"] = tokens
        if self.spec.score == "softmax":
            kept = self.ragged("num_kept")
            totals = np.concatenate([[0], np.cumsum(kept.values, dtype=np.int64)])
            per_row = totals[kept.offsets[1:]] - totals[kept.offsets[:-1]]
            expected |= dict.fromkeys(("labels", "num_kept", "entropy", "label_logprob"), positions)
            expected |= {"logsumexp": positions * len(self.spec.temperatures)}
            expected |= dict.fromkeys(("kept_ids", "kept_codes"), per_row)
        else:
            expected |= dict.fromkeys(("labels", "logits"), positions * self.spec.vocab_size)
        for feature in self.spec.features:
            expected[feature.column] = np.full(len(self), feature.width)
        return expected


def _refuse_range(name: str, values: Array, low: int, high: int, where: str) -> None:
    if values.size and not (values.min() >= low and values.max() <= high):
        raise CorruptionError(
            f"column {name} has a value out of range",
            where=where,
            expected=f"{low} to {high}",
            got=f"{values.min()} to {values.max()}",
        )


def _take(column: ColumnData, rows: Int64[np.ndarray, " M"]) -> ColumnData:
    return column.take(rows) if isinstance(column, Ragged) else column[rows]


def _concatenate(parts: Sequence[Any]) -> ColumnData:
    if isinstance(parts[0], Ragged):
        return Ragged.concatenate(parts)
    joined: Array = np.concatenate(parts)
    return joined


def _to_arrow(column: ColumnData, field: pa.Field) -> pa.Array:
    if isinstance(column, Ragged):
        mask = None if column.valid is None else pa.array(~column.valid)
        values = pa.array(column.values, field.type.value_type)
        return pa.ListArray.from_arrays(
            pa.array(column.offsets, pa.int32()), values, type=field.type, mask=mask
        )
    if field.name in _HASHES:
        offsets = pa.py_buffer(np.arange(len(column) + 1, dtype=np.int32) * HASH_BYTES)
        data = pa.py_buffer(np.ascontiguousarray(column))
        return pa.Array.from_buffers(pa.binary(), len(column), [None, offsets, data])
    return pa.array(column, field.type)


def _from_arrow(chunked: pa.ChunkedArray, field: pa.Field, where: str) -> ColumnData:
    array = chunked.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    inner = array.values if pa.types.is_list(field.type) else array
    if (array.null_count and not field.nullable) or (inner is not array and inner.null_count):
        raise CorruptionError(f"column {field.name} has a null", where=where)
    if inner is not array:
        valid = None if not array.null_count else np.asarray(array.is_valid())
        return _rows_of_lists(array, valid)
    if field.name in _HASHES:
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
        raise CorruptionError(f"column {name} has a hash that is not {HASH_BYTES} bytes", where=where)
    data = b"".join(array.to_pylist())
    return np.frombuffer(data, np.uint8).reshape(-1, HASH_BYTES)
