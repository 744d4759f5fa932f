"""What a student reads each alone: a cache's row, or each of the texts that a row holds."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.rows.checks import text_offsets
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows


class Texts(NamedTuple):
    """The texts of several batches' rows, one after the other."""

    offsets: Int64[np.ndarray, " X1"]
    """Where each begins among all tokens."""
    edges: Int64[np.ndarray, " _"]
    """The first text of each batch, and the end."""
    positions: Int64[np.ndarray, " X1"]
    """Where each text's positions begin, among all."""
    places: Array
    """Which of its text's tokens each position stands on."""

    @classmethod
    def of(cls, rows: Rows, edges: Int64[np.ndarray, " _"]) -> Texts:
        """Of rows whose batches begin at `edges`."""
        if not rows.spec.kind.holds_texts:
            return cls(rows.input_ids.offsets, edges, rows.position_offsets, rows.position_index())
        number = rows.num_positions
        offsets = text_offsets(rows.ragged("position_index"), rows.input_ids)
        return cls(offsets, rows.position_offsets[edges], np.arange(number + 1), np.zeros(number, np.int32))

    @property
    def lengths(self) -> Iterator[Int64[np.ndarray, " _"]]:
        """Tokens of each batch's texts."""
        every = np.diff(self.offsets)
        for first, last in itertools.pairwise(self.edges.tolist()):
            yield every[first:last]
