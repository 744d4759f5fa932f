"""The order of training: a pure function of (row counts, seed, epoch, weights, global batch); every row once an epoch.

* A *pass* of a cache is a permutation of its row groups. Their rows, one after the other, are cut into `lanes` slices
  of one size: lane l has the l-th. So each row group belongs to one lane, but for those at the L - 1 cuts.
* In a lane, the rows of a few row groups (a *window*) are permuted.
* The j-th row of an epoch is the (j div L)-th of lane j mod L. A step takes `batch_size` rows, from all lanes alike;
  rank r of R owns the lanes that are r modulo R. So a step holds the same rows for every R that divides L, whatever
  the batch of a device and the accumulation are.
* The steps of an epoch are taken in *runs*. In a run a lane's rows are sorted by length and dealt to its steps, the
  shortest to one of them, and so on: little padding. Which step gets which is permuted, for all lanes alike.
* Several caches share each lane by their weights: which of them gives the next row is the merge of their rows' evenly
  spaced times. Without weights each gives every row once an epoch.

So a step's address says which row groups to read, and resuming is arithmetic: a few integers are all the state.
Odd lanes go through their slice backwards: two lanes come to the row group that they share at the same time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.rows.ragged import Array
from trainer.stream.apportioned import apportioned

LANES = 8
"""By default: so many ranks, or a divisor of it, see the same batches."""
STEPS_A_RUN = 32
"""At most: neighbours still change from epoch to epoch."""
_GROUPS, _ROWS, _STEPS = range(3)


class Piece(NamedTuple):
    """Some rows of one row group."""

    cache: int
    group: int
    rows: Int64[np.ndarray, " _"]
    """Which of the row group's rows on this side of the split, in order."""


class _Layout(NamedTuple):
    """A pass of a cache."""

    groups: Int64[np.ndarray, " G"]
    ends: Int64[np.ndarray, " G"]
    """The number of rows up to the end of each."""


class _Window(NamedTuple):
    """A few row groups of a lane, whose rows are permuted together."""

    pass_number: int
    start: int
    """Which of the lane's rows is its first."""
    pieces: list[Piece]
    firsts: Int64[np.ndarray, " _"]
    """Each piece's first row among the window's."""
    order: Int64[np.ndarray, " _"]


class _Slice(NamedTuple):
    """A lane's rows in a pass of a cache: from the `low`-th to before the `high`-th."""

    low: int
    high: int

    @property
    def size(self) -> int:
        return self.high - self.low


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """Where every step of every epoch comes from. Reads nothing."""

    counts: tuple[Int64[np.ndarray, " _"], ...]
    """For each cache, the rows of each of its row groups on this side of the split."""
    batch_size: int
    """Rows of a step, over all ranks and micro-batches."""
    row_groups: int = 8
    """Row groups that are shuffled together, over all lanes; at least one a lane."""
    seed: int = 0
    shuffled: bool = True
    lanes: int = LANES
    weights: tuple[float, ...] | None = None
    """How often each cache's rows come, relative to the others'. None: as often as they are many."""

    def __post_init__(self) -> None:
        numbers = {"batch_size": self.batch_size, "row_groups": self.row_groups, "lanes": self.lanes}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2^63 - 1, but got {self.seed}")
        if self.weights is not None and not (
            len(self.weights) == len(self.counts) and all(0 < weight < np.inf for weight in self.weights)
        ):
            raise ValueError(
                f"{len(self.counts)} caches need as many weights above 0, but got {self.weights}"
            )

    @functools.cached_property
    def rows(self) -> tuple[int, ...]:
        """Of each cache."""
        return tuple(int(counts.sum()) for counts in self.counts)

    @functools.cached_property
    def num_rows(self) -> int:
        """Of an epoch."""
        return sum(self.rows)

    def some_group(self, cache: int) -> int:
        """A row group of a cache that has rows."""
        return int(np.flatnonzero(self.counts[cache])[0])

    @property
    def num_steps(self) -> int:
        """Of an epoch; only the last one may have fewer rows."""
        return -(-self.num_rows // self.batch_size)

    @functools.cached_property
    def steps_a_run(self) -> int:
        """So many that a run has about the rows of `row_groups` row groups."""
        filled = max(1, sum(int(np.count_nonzero(counts)) for counts in self.counts))
        wanted = -(-self.num_rows * self.row_groups // filled)
        return max(1, min(STEPS_A_RUN, wanted // self.batch_size))

    @property
    def num_runs(self) -> int:
        return -(-self.num_steps // self.steps_a_run)

    def steps(self, run: int) -> range:
        """The steps of a run."""
        first = run * self.steps_a_run
        return range(first, min(first + self.steps_a_run, self.num_steps))

    def step_rows(self, step: int) -> range:
        """The rows of a step, as numbers in the epoch."""
        return range(step * self.batch_size, min((step + 1) * self.batch_size, self.num_rows))

    def lane_rows(self, rows: range, lane: int) -> range:
        """Of rows with these numbers those in a lane, as numbers in the lane."""
        return range(self._before(rows.start, lane), self._before(rows.stop, lane))

    def pieces(self, epoch: int, run: int, lane: int) -> list[Piece]:
        """The rows of a lane in a run, row group by row group; those of its windows of which it takes none too."""
        steps = self.steps(run)
        rows = self.lane_rows(range(self.step_rows(steps[0]).start, self.step_rows(steps[-1]).stop), lane)
        before = epoch * self._before(self.num_rows, lane)
        weights = self._lane_weights[lane]
        first, last = (apportioned(weights, before + number) for number in (rows.start, rows.stop))
        return [
            piece
            for cache, (begin, end) in enumerate(zip(first, last, strict=True))
            for piece in self._pieces(cache, lane, begin, end)
        ]

    def deal(
        self, epoch: int, run: int, lanes: Sequence[tuple[int, int]], lengths: Int64[np.ndarray, " W"]
    ) -> list[Array]:
        """Which rows each of a run's steps takes of those of some lanes, given their lengths: as places among them,
        shortest first. `lanes` are each lane's number and how many rows it has, one after the other."""
        steps = self.steps(run)
        edges = np.minimum(np.arange(steps.start, steps.stop + 1) * self.batch_size, self.num_rows)
        ranks, first = self._permutation(len(steps), _STEPS, epoch, run), 0
        step_of: Array = np.empty(len(lengths), np.int64)
        for lane, size in lanes:
            sizes = np.diff((edges - lane + self.lanes - 1) // self.lanes)
            own = first + np.argsort(lengths[first : first + size], kind="stable")
            step_of[own] = np.repeat(ranks, sizes[ranks])
            first += size
        ends = np.cumsum(np.bincount(step_of, minlength=len(steps))).tolist()
        order = np.lexsort((lengths, step_of))
        return [order[begin:end] for begin, end in itertools.pairwise([0, *ends])]

    def _pieces(self, cache: int, lane: int, begin: int, end: int) -> Iterator[Piece]:
        """From the `begin`-th to before the `end`-th of a lane's rows of one cache, which go round and round."""
        size = self._slices[cache][lane].size
        while begin < end:
            pass_number, row = divmod(begin, size)
            window = self._window(cache, lane, pass_number, row)
            taken = window.order[row - window.start : row - window.start + end - begin]
            part = np.searchsorted(window.firsts, taken, side="right") - 1
            for place, piece in enumerate(window.pieces):
                yield piece._replace(rows=piece.rows[taken[part == place] - window.firsts[place]])
            begin += len(taken)

    def _window(self, cache: int, lane: int, pass_number: int, row: int) -> _Window:
        """The window that has a lane's `row`-th row in a pass: the last one of the lane, or the next."""
        held = self._windows.get((cache, lane))
        if held is None or held.pass_number != pass_number or not 0 <= row - held.start < len(held.order):
            start, pieces = self._window_at(cache, lane, pass_number, row)
            sizes = np.array([len(piece.rows) for piece in pieces])
            order = self._permutation(int(sizes.sum()), _ROWS, cache, lane, pass_number, start)
            held = _Window(pass_number, start, pieces, np.cumsum(sizes) - sizes, order)
            self._windows[cache, lane] = held
        return held

    def _window_at(self, cache: int, lane: int, pass_number: int, row: int) -> tuple[int, list[Piece]]:
        """A window's own first row, and what it reads."""
        low, high = self._slices[cache][lane]
        layout, backwards = self._layout(cache, pass_number), lane % 2 == 1 and self.shuffled
        first, last = (int(np.searchsorted(layout.ends, at, side="right")) for at in (low, high - 1))
        at = int(np.searchsorted(layout.ends, high - 1 - row if backwards else low + row, side="right"))
        wide = max(1, self.row_groups // self.lanes)
        if backwards:
            stop = last - (last - at) // wide * wide + 1
            places = range(max(first, stop - wide), stop)
            start = high - min(high, int(layout.ends[places[-1]]))
        else:
            begin = first + (at - first) // wide * wide
            places = range(begin, min(last + 1, begin + wide))
            start = max(low, self._begin(layout, cache, begin)) - low
        found = []
        for place in places:
            begin = self._begin(layout, cache, place)
            rows = np.arange(max(low, begin) - begin, min(high, int(layout.ends[place])) - begin)
            found.append(Piece(cache, int(layout.groups[place]), rows))
        return start, found

    def _begin(self, layout: _Layout, cache: int, place: int) -> int:
        return int(layout.ends[place]) - int(self.counts[cache][layout.groups[place]])

    def _before(self, number: int, lane: int) -> int:
        """How many of an epoch's first rows are in a lane."""
        return (number - lane + self.lanes - 1) // self.lanes

    @functools.cached_property
    def _slices(self) -> list[list[_Slice]]:
        """Of each cache, those of the lanes. A lane has as many rows over all caches as it has in an epoch."""
        found, offset = [], 0
        for rows in self.rows:
            cuts = [
                self._before(offset + rows, lane) - self._before(offset, lane) for lane in range(self.lanes)
            ]
            ends = np.cumsum(cuts).tolist()
            found.append([_Slice(end - size, end) for end, size in zip(ends, cuts, strict=True)])
            offset += rows
        return found

    @functools.cached_property
    def _lane_weights(self) -> list[list[Fraction]]:
        """Of each lane, for each cache; 0 where it has no rows."""
        wanted = self.weights or (None,) * len(self.counts)
        return [
            [
                Fraction(slices[lane].size if weight is None or not slices[lane].size else weight)
                for weight, slices in zip(wanted, self._slices, strict=True)
            ]
            for lane in range(self.lanes)
        ]

    def _layout(self, cache: int, pass_number: int) -> _Layout:
        kept = self._layouts
        key = (cache, pass_number if self.shuffled else 0)
        if key not in kept:
            filled = np.flatnonzero(self.counts[cache])
            if self.shuffled:
                filled = filled[self._permutation(len(filled), _GROUPS, cache, pass_number)]
            if len(kept) > 1 + len(self.counts):
                kept.pop(next(iter(kept)))
            kept[key] = _Layout(filled, np.cumsum(self.counts[cache][filled]))
        return kept[key]

    @functools.cached_property
    def _windows(self) -> dict[tuple[int, int], _Window]:
        """The last one of each cache and lane: a window serves several runs."""
        return {}

    @functools.cached_property
    def _layouts(self) -> dict[tuple[int, int], _Layout]:
        """Those of the last passes."""
        return {}

    def _permutation(self, size: int, *key: int) -> Int64[np.ndarray, " M"]:
        """A permutation decided by the seed and the key alone: Philox's raw stream is fixed for ever (NEP 19)."""
        if not self.shuffled:
            return np.arange(size)
        stream = np.random.Philox(np.random.SeedSequence([self.seed, *key])).random_raw(size)
        order: Array = np.argsort(np.asarray(stream, np.uint64), kind="stable")
        return order


def by_length(lengths: Int64[np.ndarray, " M"], size: int) -> list[Int64[np.ndarray, " _"]]:
    """Rows of like length together, `size` at a time: as indices, shortest first."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
