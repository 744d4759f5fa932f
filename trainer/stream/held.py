"""Decoded row groups that stay in memory for later epochs and evaluations, up to a limit.

The first that are read stay, and none goes to make room: an epoch reads every row group once, so whatever goes last
before it is wanted again would always be the wrong one. Of a cache that is larger than the limit so much is served from
memory as fits. What is held was checked when it was decoded, and a file that changes later is not looked at again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from schemas.rows.arrow import ColumnData
from schemas.rows.ragged import Ragged
from schemas.rows.rows import Rows

Key = tuple[str, int, int, int]
"""A cache's root and version, the number of a shard and the place of a row group in it."""
_OBJECT_BYTES = 64
"""Of a Python object beside what it holds, about."""


class Held:
    """At most so many bytes of rows. From any threads."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._rows: dict[Key, Rows] = {}
        self._lock = threading.Lock()

    def get(self, key: Key, read: Callable[[], Rows]) -> Rows:
        """The row group of that key, read where it is not held. Nobody may write to it."""
        found = self._rows.get(key)
        if found is not None:
            return found
        rows = read()
        size = size_of(rows)
        with self._lock:
            if key not in self._rows and size <= self._left:
                self._rows[key], self._left = rows, self._left - size
        return rows


def size_of(rows: Rows) -> int:
    """Bytes that the columns take in memory; of texts and images about."""
    return sum(_size_of(column) for column in rows.data.values())


def _size_of(column: ColumnData) -> int:
    if isinstance(column, Ragged):
        valid = 0 if column.valid is None else column.valid.nbytes
        return column.values.nbytes + column.offsets.nbytes + valid
    objects = 0
    if column.dtype == np.dtype(object):
        objects = sum(_OBJECT_BYTES + len(value) for value in column if value is not None)
    return int(column.nbytes) + objects
