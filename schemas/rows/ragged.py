"""Flat ragged arrays: the shape in which everything per token, position and entry is held in memory.

A list column is one flat array of values and R+1 offsets. Gathering rows costs a handful of numpy calls whatever
the number of rows; there is no Python loop over rows anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, Num

from schemas.rows import kernels
from schemas.rows.blocks import array

Array = np.ndarray[Any, np.dtype[Any]]

LONG = 192
"""Values of a piece from which on copying it is cheaper than an index for each of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ragged:
    """R lists: row i is `values[offsets[i]:offsets[i + 1]]`, and null (and empty) where `valid[i]` is false."""

    values: Array
    offsets: Int64[np.ndarray, " R1"]
    valid: Bool[np.ndarray, " R"] | None = None

    def __post_init__(self) -> None:
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ValueError(
                f"offsets must go from 0 to {len(self.values)}, but go from {self.offsets[0]} to {self.offsets[-1]}"
            )
        if self.valid is not None and (filled := (self.lengths > 0) & ~self.valid).any():
            raise ValueError(f"a null row must be empty, but row {filled.argmax()} is not")

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " R"]:
        # `np.diff` costs several times as much where there are few
        found: Array = self.offsets[1:] - self.offsets[:-1]
        return found

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> Array:
        """The values of one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: Int64[np.ndarray, " M"]) -> Ragged:
        """The given rows, in the given order."""
        lengths = self.lengths[rows]
        offsets = offsets_of(lengths)
        values = _gathered(self.values, self.offsets[:-1][rows], lengths, offsets)
        valid = None if self.valid is None else self.valid[rows]
        return type(self)(values=values, offsets=offsets, valid=valid)

    def split(self, first: Int64[np.ndarray, " R"]) -> tuple[Ragged, Ragged]:
        """So many first values of each row, and its others."""
        lengths, starts = self.lengths, self.offsets[:-1]
        found = []
        for begins, own in ((starts, first), (starts + first, lengths - first)):
            offsets = offsets_of(own)
            found.append(type(self)(values=_gathered(self.values, begins, own, offsets), offsets=offsets))
        return found[0], found[1]

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts, one part after the other."""
        values = np.concatenate([part.values for part in parts])
        offsets = offsets_of(np.concatenate([part.lengths for part in parts]))
        valid = None
        if any(part.valid is not None for part in parts):
            valid = np.concatenate([part.validity for part in parts])
        return cls(values=values, offsets=offsets, valid=valid)

    def sums(self) -> Array:
        """The sum of each row's values."""
        totals = offsets_of(self.values)
        found: Array = totals[self.offsets[1:]] - totals[self.offsets[:-1]]
        return found

    @property
    def validity(self) -> Bool[np.ndarray, " R"]:
        return np.ones(len(self), np.bool_) if self.valid is None else self.valid

    @classmethod
    def of(cls, lists: Sequence[Array | None], dtype: Any) -> Ragged:
        """From one array a row, `None` for null. For building inputs, not for hot paths."""
        arrays = [np.asarray(() if row is None else row, dtype) for row in lists]
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        valid = np.array([row is not None for row in lists], np.bool_)
        offsets = offsets_of(np.array([len(row) for row in arrays], np.int64))
        return cls(values=values, offsets=offsets, valid=None if valid.all() else valid)


def offsets_of(lengths: Array) -> Int64[np.ndarray, " R1"]:
    """Offsets `[0, l0, l0+l1, ...]` from lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def spans(
    starts: Int64[np.ndarray, " M"],
    lengths: Int64[np.ndarray, " M"],
    offsets: Int64[np.ndarray, " M1"],
) -> Int64[np.ndarray, " T"]:
    """The indices `start .. start + length` of each span, one after the other; `offsets` are those of `lengths`."""
    indices: Array = np.arange(offsets[-1], dtype=np.int64)
    indices += np.repeat(starts - offsets[:-1], lengths)
    return indices


def _gathered(
    values: Array,
    starts: Int64[np.ndarray, " M"],
    lengths: Int64[np.ndarray, " M"],
    offsets: Int64[np.ndarray, " M1"],
) -> Array:
    """A copy of the values of each span, one after the other. Without compiled loops in pieces where these are long,
    neighbours together; else by an index a value, which costs four times as much for long ones, and a twentieth for
    short ones."""
    if kernels.IS_COMPILED and values.dtype.kind in "if":
        copied = array(values.dtype, int(offsets[-1]))
        kernels.take_lists(values, starts, lengths, copied)
        return copied
    begins = np.flatnonzero(starts[1:] != starts[:-1] + lengths[:-1]) + 1
    if offsets[-1] < LONG * (len(begins) + 1):
        indexed: Array = values[spans(starts, lengths, offsets)]
        return indexed
    first = np.concatenate([starts[:1], starts[begins]]).tolist()
    last = np.concatenate([starts[begins - 1] + lengths[begins - 1], starts[-1:] + lengths[-1:]]).tolist()
    joined: Array = np.concatenate([values[begin:end] for begin, end in zip(first, last, strict=True)])
    return joined


def segment_starts(counts: Num[np.ndarray, " N"]) -> Int64[np.ndarray, " M"]:
    """Where each of the segments that are not empty begins."""
    counts = counts.astype(np.int64)
    starts: Array = (np.cumsum(counts) - counts)[counts > 0]
    return starts


def segmented_sums(values: Num[np.ndarray, " E"], counts: Num[np.ndarray, " N"]) -> Int32[np.ndarray, " E"]:
    """Running sums that begin anew at each segment of `counts[n]` values; in int32, which wraps around.

    Each segment's first value is lowered by the sum of the one before, so that one running sum over all does it.
    """
    found = values.astype(np.int32)
    starts = segment_starts(counts)
    if len(starts) > 1:
        found[starts[1:]] -= np.add.reduceat(found, starts, dtype=np.int32)[:-1]
    return np.cumsum(found, dtype=np.int32, out=found)
