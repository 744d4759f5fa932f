"""A run's rows, where they were decoded: batches are gathered from the row groups themselves.

Columns of few values are joined once a run, and then taken by index; those of entries, which are most of a row group,
are copied each in one piece where a batch needs them at all (`trainer/batches/entries.py`). Cost: the row groups of a
run stay in memory whole, also rows of the other side of the split.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from schemas.rows.arrow import ColumnData
from schemas.rows.ragged import LONG, Array, Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.spec import Spec

Chosen = tuple[Rows, Int64[np.ndarray, " _"]]
"""A row group, and which of its rows are meant, in order."""


class Pool:
    """Chosen rows of several row groups, one after the other."""

    def __init__(self, parts: Sequence[Chosen]) -> None:
        numbers = {
            id(rows): number for number, rows in enumerate({id(rows): rows for rows, _ in parts}.values())
        }
        self._parts = list({id(rows): rows for rows, _ in parts}.values())
        own = np.array([numbers[id(rows)] for rows, _ in parts], np.int64)
        self._part = np.repeat(own, [len(chosen) for _, chosen in parts])
        self._row: Array = np.concatenate([np.empty(0, np.int64), *(chosen for _, chosen in parts)])
        self._place = offsets_of(np.array([*map(len, self._parts)], np.int64))[self._part] + self._row
        self._joined: dict[str, ColumnData] = {}
        self._offsets: dict[str, list[list[int]]] = {}

    def __len__(self) -> int:
        return len(self._row)

    @property
    def spec(self) -> Spec:
        """Of all parts."""
        return self._parts[0].spec

    def places(self, rows: Array) -> tuple[Sequence[Rows], Array, Array]:
        """The parts, of which of them each of these rows is, and which row of it."""
        return self._parts, self._part[rows], self._row[rows]

    @property
    def lengths(self) -> Int64[np.ndarray, " W"]:
        """Tokens of each row."""
        own = (part.input_ids.lengths for part in self._parts)
        found: Array = np.concatenate([np.empty(0, np.int64), *own])[self._place]
        return found

    def take(self, rows: Int64[np.ndarray, " M"], columns: Collection[str] | None = None) -> Rows:
        """As `Rows.take` of these rows one after the other."""
        names = [name for name in self._parts[0].data if columns is None or name in columns]
        return Rows(spec=self.spec, data={name: self._column(name, rows) for name in names})

    def _column(self, name: str, rows: Array) -> ColumnData:
        if self._is_long(name):
            return self._pieces(name, rows)
        if name not in self._joined:
            self._joined[name] = Rows.concatenate([part.only((name,)) for part in self._parts]).data[name]
        column, places = self._joined[name], self._place[rows]
        return column.take(places) if isinstance(column, Ragged) else column[places]

    def _is_long(self, name: str) -> bool:
        columns = [part.data[name] for part in self._parts]
        if not all(isinstance(column, Ragged) and column.valid is None for column in columns):
            return False
        values = sum(len(column.values) for column in columns if isinstance(column, Ragged))
        return values >= LONG * sum(map(len, columns))

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
