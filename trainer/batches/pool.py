"""A run's rows, where they were decoded: batches are gathered from the row groups themselves.

Lists are copied by a compiled loop to where a batch has them; entries, which are most of a row group, are not copied at
all where a loop decodes them in their place (`trainer/batches/entries.py`). Other columns, and lists of few values, are
joined once a run and then taken by index: a call for each row group costs more. Cost: the row groups of a run stay in
memory whole, also rows of the other side of the split.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.rows import kernels
from schemas.rows.arrow import ColumnData
from schemas.rows.blocks import arrays
from schemas.rows.ragged import LONG, Array, Ragged, offsets_of
from schemas.rows.rows import Rows
from schemas.spec import Spec
from trainer.batches.kernels import gather_lists

_SHORT = 16
"""Values of a list from which on a compiled loop for each row group costs less than joining them."""
Part = tuple[Rows, Int64[np.ndarray, " _"]]
"""Some rows, and which of them are meant, in order."""


class Chosen(NamedTuple):
    """A row group, and which of its rows are meant, in order."""

    rows: Rows
    chosen: Int64[np.ndarray, " _"]
    beside: tuple[Rows, ...] = ()
    """The chosen rows, in order, as other caches hold them."""


class Pool:
    """Chosen rows of several row groups, one after the other."""

    def __init__(self, parts: Sequence[Part], beside: Sequence[Pool] = ()) -> None:
        """`beside` has the same rows as other caches hold them."""
        self.beside = tuple(beside)
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
        self._spans: dict[str, tuple[Array, Array]] = {}
        self._long: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._row)

    @property
    def spec(self) -> Spec:
        """Of all parts."""
        return self._parts[0].spec

    def places(self, rows: Array) -> Iterator[tuple[Rows, Array, Array]]:
        """Each part, which of these rows are of it, and which of its rows they are."""
        part, row = self._part[rows], self._row[rows]
        for number in np.flatnonzero(np.bincount(part)).tolist():
            own = np.flatnonzero(part == number)
            yield self._parts[number], own, row[own]

    @property
    def lengths(self) -> Int64[np.ndarray, " W"]:
        """Tokens of each row."""
        own = (part.input_ids.lengths for part in self._parts)
        found: Array = np.concatenate([np.empty(0, np.int64), *own])[self._place]
        return found

    def students(self, rows: Int64[np.ndarray, " M"]) -> Array:
        """Of each of these rows, whether its text is none that a teacher wrote; where a loss asks, the student did."""
        own = np.array([part.spec.generation is None for part in self._parts], bool)
        found: Array = own[self._part[rows]]
        return found

    def take(self, rows: Int64[np.ndarray, " M"], columns: Collection[str] | None = None) -> Rows:
        """As `Rows.take` of these rows one after the other."""
        names = [name for name in self._parts[0].data if columns is None or name in columns]
        places = list(self.places(rows))
        return Rows(spec=self.spec, data={name: self._column(name, rows, places) for name in names})

    def _column(self, name: str, rows: Array, places: Sequence[tuple[Rows, Array, Array]]) -> ColumnData:
        if name not in self._long:
            self._long[name] = self._is_long(name)
        if self._long[name]:
            return self._gathered(name, rows, places) if self._is_compiled(name) else self._pieces(name, rows)
        if name not in self._joined:
            self._joined[name] = Rows.concatenate([part.only((name,)) for part in self._parts]).data[name]
        column, at = self._joined[name], self._place[rows]
        return column.take(at) if isinstance(column, Ragged) else column[at]

    def _gathered(self, name: str, rows: Array, places: Sequence[tuple[Rows, Array, Array]]) -> Ragged:
        columns = [part.ragged(name) for part in self._parts]
        if name not in self._spans:
            starts = np.concatenate([column.offsets[:-1] for column in columns])
            self._spans[name] = starts, np.concatenate([column.lengths for column in columns])
        at = self._place[rows]
        starts, lengths = (each[at] for each in self._spans[name])
        offsets = offsets_of(lengths)
        (values,) = arrays([(columns[0].values.dtype, int(offsets[-1]))])
        for part, own, _ in places:
            gather_lists(part.ragged(name).values, starts[own], lengths[own], offsets[own], values)
        valid = None
        if any(column.valid is not None for column in columns):
            valid = np.concatenate([column.validity for column in columns])[at]
        return Ragged(values=values, offsets=offsets, valid=valid)

    def _is_long(self, name: str) -> bool:
        columns = [part.data[name] for part in self._parts]
        if not all(isinstance(column, Ragged) and column.valid is None for column in columns):
            return False
        values = sum(len(column.values) for column in columns if isinstance(column, Ragged))
        return values >= (_SHORT if self._is_compiled(name) else LONG) * sum(map(len, columns))

    def _is_compiled(self, name: str) -> bool:
        column = self._parts[0].data[name]
        return kernels.IS_COMPILED and isinstance(column, Ragged) and column.values.dtype.kind in "if"

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


def pooled(pieces: Sequence[tuple[Chosen, Int64[np.ndarray, " _"]]]) -> Pool:
    """Of each what was chosen the rows at some places; and the same as other caches hold them."""
    beside = [
        Pool([(held.beside[number], places) for held, places in pieces])
        for number in range(len(pieces[0][0].beside) if pieces else 0)
    ]
    return Pool([(held.rows, held.chosen[places]) for held, places in pieces], beside)
