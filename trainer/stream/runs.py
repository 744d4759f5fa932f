"""A run of steps in memory: the rows that one rank takes in it, read a row group at a time.

What it costs: the row groups of a run, of the one that is read ahead, and of the windows in which lanes stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from schemas.rows.ragged import Array
from trainer.batches.pool import Chosen, Pool, pooled
from trainer.stream.order import Order
from trainer.stream.side import Side

_LOCAL_THREADS, _REMOTE_THREADS = 1, 8
"""Two that decode take a tenth more of the processor than one, for the interpreter that they share; what waits for a
store takes none."""


class Run(NamedTuple):
    """Rows in memory, and which of them each step of a run takes on this rank: those of like length together."""

    epoch: int
    number: int
    rows: Pool
    steps: list[Array]


def read_runs(
    sides: Sequence[Side], order: Order, lanes: Sequence[int], epoch: int, run: int
) -> Iterator[Run]:
    """The runs of some lanes from one on, epoch after epoch, without end. What two lanes share is read once."""
    threads = _LOCAL_THREADS if all(side.cache.storage.is_local for side in sides) else _REMOTE_THREADS
    with ThreadPoolExecutor(threads) as pool:
        reader = _Reader(sides, order, lanes, pool)
        while order.num_rows:
            for number in range(run, order.num_runs):
                yield reader.read(epoch, number)
            epoch, run = epoch + 1, 0


class _Reader:
    """Holds the row groups of the last run, of which the next may need some."""

    def __init__(
        self, sides: Sequence[Side], order: Order, lanes: Sequence[int], pool: ThreadPoolExecutor
    ) -> None:
        self._sides, self._order, self._lanes, self._pool = sides, order, lanes, pool
        self._held: dict[tuple[int, int], Chosen] = {}
        """By cache and number."""

    def read(self, epoch: int, number: int) -> Run:
        lanes = [self._order.pieces(epoch, number, lane) for lane in self._lanes]
        keys = list(dict.fromkeys((piece.cache, piece.group) for lane in lanes for piece in lane))
        self._held = dict(zip(keys, self._pool.map(self._group, keys), strict=True))
        taken = [
            [(self._held[piece.cache, piece.group], piece.rows) for piece in pieces if len(piece.rows)]
            for pieces in lanes
        ]
        sizes = [sum(len(places) for _, places in pieces) for pieces in taken]
        rows = pooled([piece for pieces in taken for piece in pieces])
        dealt = list(zip(self._lanes, sizes, strict=True))
        return Run(epoch, number, rows, self._order.deal(epoch, number, dealt, rows.lengths))

    def _group(self, key: tuple[int, int]) -> Chosen:
        if key in self._held:
            return self._held[key]
        cache, group = key
        return self._sides[cache].counted(group, int(self._order.counts[cache][group]))
