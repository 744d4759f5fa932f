"""A window's rows, where they were decoded: batches are gathered from the row groups themselves, in one copy.

Rows of long lists (entries of a text) are copied each in one piece. Columns of short ones are joined once a window, and
then gathered by index. Cost: the row groups of a window stay in memory whole, also rows of the other side of the split.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from schemas.rows.arrow import ColumnData
from schemas.rows.ragged import LONG, Array, Ragged, offsets_of
from schemas.rows.rows import Rows

Chosen = tuple[Rows, Int64[np.ndarray, " _"]]
"""A row group, and which of its rows are meant, in order."""


class Pool:
    """Chosen rows of several row groups, one after the other."""

    def __init__(self, parts: Sequence[Chosen]) -> None:
        self._parts = [rows for rows, _ in parts]
        self._part = np.repeat(np.arange(len(parts)), [len(chosen) for _, chosen in parts])
        self._row: Array = np.concatenate([np.empty(0, np.int64), *(chosen for _, chosen in parts)])
        self._joined: dict[str, ColumnData] = {}
        self._offsets: dict[str, list[list[int]]] = {}

    def __len__(self) -> int:
        return len(self._row)

    @property
    def lengths(self) -> Int64[np.ndarray, " W"]:
        """Tokens of each row."""
        every = offsets_of(np.array([len(part) for part in self._parts]))[:-1]
        own = (part.input_ids.lengths for part in self._parts)
        lengths: Array = np.concatenate([np.empty(0, np.int64), *own])
        found: Array = lengths[every[self._part] + self._row]
        return found

    def take(self, rows: Int64[np.ndarray, " M"], columns: Collection[str] | None = None) -> Rows:
        """As `Rows.take` of these rows one after the other."""
        names = [name for name in self._parts[0].data if columns is None or name in columns]
        return Rows(spec=self._parts[0].spec, data={name: self._column(name, rows) for name in names})

    def _column(self, name: str, rows: Array) -> ColumnData:
        if self._is_long(name):
            return self._pieces(name, rows)
        if name not in self._joined:
            self._joined[name] = self._chosen(name)
        column = self._joined[name]
        return column.take(rows) if isinstance(column, Ragged) else column[rows]

    def _is_long(self, name: str) -> bool:
        columns = [part.data[name] for part in self._parts]
        if not all(isinstance(column, Ragged) and column.valid is None for column in columns):
            return False
        values = sum(len(column.values) for column in columns if isinstance(column, Ragged))
        return values >= LONG * sum(map(len, columns))

    def _chosen(self, name: str) -> ColumnData:
        counts = np.bincount(self._part, minlength=len(self._parts))
        rows = np.split(self._row, np.cumsum(counts)[:-1])
        parts = [part.take(own, (name,)) for part, own in zip(self._parts, rows, strict=True)]
        return Rows.concatenate(parts).data[name]

    def _pieces(self, name: str, rows: Array) -> Ragged:
        columns: list[Any] = [part.data[name] for part in self._parts]
        if name not in self._offsets:
            self._offsets[name] = [column.offsets.tolist() for column in columns]
        values, offsets = [column.values for column in columns], self._offsets[name]
        where = zip(self._part[rows].tolist(), self._row[rows].tolist(), strict=True)
        found = [values[part][offsets[part][row] : offsets[part][row + 1]] for part, row in where]
        return Ragged(
            values=np.concatenate(found), offsets=offsets_of(np.array([*map(len, found)], np.int64))
        )
