"""Rows in memory: the columns of some examples as flat numpy arrays, as they are on disk (codes, not decoded), but for
kept ids, which are ids here and ranks there (`kept_ids` for `kept_ranks`, `sampled_ids` for `sampled_gaps`).

Writer and reader share this value: the teacher's batches become `Rows`, a shard's row group is `Rows`, and a training
batch is `rows.take(...)`. Arrow's buffers are used as they are where a column has no nulls.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, Int64

from schemas.errors import CorruptionError
from schemas.features import Feature
from schemas.rows import kernels
from schemas.rows.arrow import ColumnData, from_arrow, to_arrow
from schemas.rows.blocks import array
from schemas.rows.checks import check_columns, position_offsets
from schemas.rows.classes import num_classes
from schemas.rows.codec import decode_levels, decode_logprobs, decode_scalars, dequantise
from schemas.rows.columns import shard_schema
from schemas.rows.ragged import Array, Ragged, offsets_of
from schemas.rows.ranks import Ranking, ranked, unranked
from schemas.spec import Spec


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
        return position_offsets(self.spec, self.data)

    @property
    def num_positions(self) -> int:
        return int(self.position_offsets[-1])

    @property
    def num_entries(self) -> int:
        """Exact and drawn ones; of scores that are all kept, these."""
        if not self.spec.kind.has_positions:
            return 0
        if self.spec.score != "softmax":
            return len(self.ragged("logits").values)
        return int(self.kept_counts.sum(dtype=np.int64) + self.sampled_counts.sum(dtype=np.int64))

    def position_index(self) -> Int32[np.ndarray, " N"]:
        """Which token of its example each position stands on.

        A null row means every token but the last, in order (`check` has asserted that it has so many positions).
        """
        return self._position_index

    @functools.cached_property
    def _position_index(self) -> Int32[np.ndarray, " N"]:
        offsets, stored = self.position_offsets, self.ragged("position_index")
        index = array(np.int32, int(offsets[-1]))
        count = kernels.count_places if kernels.IS_COMPILED else count_places
        count(offsets, stored.validity, stored.values, index)
        return index

    def gold_ids(self) -> Ragged:
        """What is right at each position of softmax scores, an id or a class; null rows have no labels."""
        if self.spec.kind.labels != "next_token":
            return self.ragged("labels")
        offsets, ids = self.position_offsets, self.input_ids
        found = array(ids.values.dtype, int(offsets[-1]))
        take = kernels.take_next if kernels.IS_COMPILED else take_next
        take(ids.values, ids.offsets[:-1], offsets, self.position_index(), found)
        return Ragged(values=found, offsets=offsets)

    @property
    def kept_counts(self) -> Int32[np.ndarray, " N"]:
        """How many entries of each position are kept exactly."""
        counts: Array = self.ragged("num_kept").values
        return counts

    @property
    def kept_offsets(self) -> Int64[np.ndarray, " N1"]:
        """Offsets of each position's exact entries among all E."""
        return offsets_of(self.kept_counts)

    @property
    def kept_ids(self) -> Int32[np.ndarray, " E"]:
        return self.ragged("kept_ids").values

    def kept_logprobs(self) -> Float32[np.ndarray, " E"]:
        """Log-probabilities of the exact entries under the *full* softmax, within half a code step."""
        codes = self.ragged("kept_codes").values
        return decode_logprobs(codes, self.kept_counts, self.top_logprob(), self.spec.code_step_nats)

    @property
    def class_counts(self) -> Int64[np.ndarray, " N"]:
        """How many ids each position may have: V, but where classes are a row's own tokens."""
        found: Array = np.repeat(num_classes(self.spec, self.data), np.diff(self.position_offsets))
        return found

    @property
    def sampled_counts(self) -> Int32[np.ndarray, " N"]:
        """How many entries of each position are drawn; 0 where the policy draws none."""
        if not self.spec.is_sampling:
            return np.zeros(self.num_positions, np.int32)
        counts: Array = self.ragged("num_sampled").values
        return counts

    def sampled_logprobs(self) -> Float32[np.ndarray, " D"] | None:
        """Own log-probabilities of the D drawn entries, within half a code step; None where they are not stored."""
        if not self.spec.own_logits:
            return None
        codes = self.ragged("sampled_codes").values
        return decode_levels(codes, self.sampled_counts, self.top_logprob(), self.spec.code_step_nats)

    def top_logprob(self) -> Float32[np.ndarray, " N"]:
        """Each position's largest log-probability, within half a top step."""
        return -decode_scalars(self.ragged("top_codes").values, self.spec.top_step_nats)

    def entropy(self) -> Float32[np.ndarray, " N"]:
        """Of the full distribution at temperature 1, in nats, within half a scalar step.

        Raises:
            ValueError: the cache does not store it.
        """
        self._refuse_unstored("entropy")
        return decode_scalars(self.ragged("entropy_codes").values, self.spec.scalar_step_nats)

    def gold_logprob(self) -> Ragged:
        """Log-probability of each position's gold id, within half a scalar step; null rows have no labels.

        Raises:
            ValueError: the cache does not store it.
        """
        self._refuse_unstored("gold")
        codes = self.ragged("gold_codes")
        values = -decode_scalars(codes.values, self.spec.scalar_step_nats)
        return Ragged(values=values, offsets=codes.offsets, valid=codes.valid)

    def word_start_logprob(self) -> Float32[np.ndarray, " N"]:
        """Log-probability at temperature 1 that a token comes which begins a word, within half a scalar step.

        Raises:
            ValueError: the cache does not store it.
        """
        self._refuse_unstored("word_start")
        return -decode_scalars(self.ragged("word_start_codes").values, self.spec.scalar_step_nats)

    def logsumexp(self, temperature: float = 1.0) -> Float32[np.ndarray, " N"]:
        """log sum exp(logit / T) over all of V.

        Raises:
            ValueError: the cache does not store it, or not at this temperature.
        """
        self._refuse_unstored("logsumexp")
        declared = self.spec.temperatures
        if temperature not in declared:
            raise ValueError(f"the cache has logsumexp at temperatures {declared}, not at {temperature}")
        return self.ragged("logsumexp").values[declared.index(temperature) :: len(declared)]

    def _refuse_unstored(self, name: str) -> None:
        if name not in self.spec.scalars:
            raise ValueError(f"the cache stores the scalars {self.spec.scalars}, not {name}")

    def feature(self, feature: Feature) -> Float32[np.ndarray, "R D"]:
        """One pooled feature of each row."""
        values = self.ragged(feature.column).values.reshape(len(self), feature.width)
        if feature.dtype == "float32":
            return values
        return dequantise(values, self.array(feature.scale_column))

    def take(self, rows: Int64[np.ndarray, " M"], columns: Collection[str] | None = None) -> Rows:
        """The given rows, in the given order; of some columns alone where they are named."""
        names = [name for name in self.data if columns is None or name in columns]
        return type(self)(spec=self.spec, data={name: _take(self.data[name], rows) for name in names})

    def only(self, columns: Collection[str]) -> Rows:
        """The same rows with some columns alone."""
        return type(self)(spec=self.spec, data={name: self.data[name] for name in columns})

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one part after the other."""
        names = parts[0].data
        joined = {name: _concatenate([part.data[name] for part in parts]) for name in names}
        return cls(spec=parts[0].spec, data=joined)

    def to_arrow(self, ranking: Ranking | None) -> pa.Table:
        """The table that a shard with this ranking holds; scores that are all kept need none."""
        schema = shard_schema(self.spec)
        data = self.data if ranking is None else {**self.data, **ranked(self.data, ranking)}
        return pa.Table.from_arrays([to_arrow(data[field.name], field) for field in schema], schema=schema)

    @classmethod
    def from_arrow(
        cls, table: pa.Table, spec: Spec, where: str, ranking: Ranking | None = None, *, checked: bool = True
    ) -> Rows:
        """Rows from a table with all columns of the spec, or some; other columns are ignored.

        Raises:
            CorruptionError: a null where none may be, or lists whose lengths do not fit together.
        """
        schema = shard_schema(spec)
        known = [name for name in schema.names if name in table.column_names]
        data = {name: from_arrow(table[name], schema.field(name), where) for name in known}
        if "kept_ranks" in data:
            assert ranking is not None
            data |= unranked(data, ranking, where)
            data = {
                name: column for name, column in data.items() if name not in ("kept_ranks", "sampled_gaps")
            }
        rows = cls(spec=spec, data=data)
        if checked and len(known) == len(schema.names):
            rows.check(where)
        return rows

    def check(self, where: str, *, deep: bool = False) -> None:
        """Asserts every rule of `schemas/rows/checks.py`.

        Raises:
            CorruptionError: naming the first column that breaks one.
        """
        check_columns(self.spec, self.data, where, deep=deep)

    def faults(self, *, deep: bool = False) -> dict[int, str]:
        """Which rows break a rule, and which: the whole is halved until each stands alone."""
        try:
            self.check("", deep=deep)
        except CorruptionError as error:
            if len(self) == 1:
                return {0: error.what}
        else:
            return {}
        middle = len(self) // 2
        halves = (np.arange(middle), np.arange(middle, len(self)))
        found = ((half, self.take(half).faults(deep=deep)) for half in halves)
        return {int(half[row]): why for half, bad in found for row, why in bad.items()}


def count_places(offsets: Array, valid: Array, stored: Array, into: Array) -> None:
    """As the compiled loop."""
    lengths = np.diff(offsets)
    into[:] = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    into[np.repeat(valid, lengths)] = stored


def take_next(values: Array, starts: Array, offsets: Array, places: Array, into: Array) -> None:
    """As the compiled loop."""
    into[:] = values[np.repeat(starts, np.diff(offsets)) + places + 1]


def _take(column: ColumnData, rows: Int64[np.ndarray, " M"]) -> ColumnData:
    return column.take(rows) if isinstance(column, Ragged) else column[rows]


def _concatenate(parts: Sequence[Any]) -> ColumnData:
    if isinstance(parts[0], Ragged):
        return Ragged.concatenate(parts)
    joined: Array = np.concatenate(parts)
    return joined
