"""The order of training: a pure function of (cache, seed, epoch), with every row exactly once an epoch.

An epoch is a permutation of row groups; their rows on this side of the held-out split, one after the other, are cut
into *windows* of a fixed number of rows (about `shuffle_row_groups` row groups, a multiple of the batch size). A
window is read, its rows are permuted, sorted by length in runs, and cut into batches, whose order is permuted. So a
batch's address (epoch, number) says which row groups to read, and resuming is arithmetic: only its window is read.

What it costs: two windows in memory, and the one being cut; a row group that lies across two windows is read once
while the stream goes on, and again by a resume. Each rank reads every row group and keeps every n-th batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from schemas.cache import Cache
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.seal import Shard
from trainer.stream.pool import Chosen, Pool

BATCHES_A_RUN = 32
"""Batches whose rows are sorted by length together: little padding, and neighbours that still change by epoch."""

_THREADS = 16
_GROUPS, _ROWS, _BATCHES = range(3)


class Segment(NamedTuple):
    """Some of a row group's rows on one side of the split: the `first` to the `last` of them."""

    group: int
    first: int
    last: int


class Layout(NamedTuple):
    """An epoch's row groups in order, and the number of rows up to the end of each."""

    groups: Int64[np.ndarray, " G"]
    ends: Int64[np.ndarray, " G"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """Where every batch of every epoch comes from. Integers only; reads nothing."""

    counts: tuple[int, ...]
    """Rows of each row group on this side of the split."""
    batch_size: int
    window_rows: int
    seed: int
    shuffled: bool

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.window_rows < 1 or self.window_rows % self.batch_size:
            raise ValueError(f"window_rows {self.window_rows} is no multiple of {self.batch_size}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2^63 - 1, but got {self.seed}")

    @classmethod
    def of(
        cls, counts: Sequence[int], *, batch_size: int, row_groups: int, seed: int, shuffled: bool
    ) -> Order:
        """An order whose windows hold about the rows of `row_groups` row groups."""
        if row_groups < 1 or batch_size < 1:
            raise ValueError(
                f"a window needs row groups and batches rows, but got {row_groups}, {batch_size}"
            )
        filled = max(1, sum(count > 0 for count in counts))
        wanted = -(-sum(counts) * row_groups // filled)
        return cls(
            counts=tuple(counts),
            batch_size=batch_size,
            window_rows=max(1, -(-wanted // batch_size)) * batch_size,
            seed=seed,
            shuffled=shuffled,
        )

    @functools.cached_property
    def num_rows(self) -> int:
        return sum(self.counts)

    @functools.cached_property
    def _counts(self) -> Int64[np.ndarray, " G"]:
        return np.array(self.counts, np.int64)

    @property
    def num_batches(self) -> int:
        """Batches of an epoch; only the last window has one that is not full."""
        return -(-self.num_rows // self.batch_size)

    @property
    def batches_a_window(self) -> int:
        return self.window_rows // self.batch_size

    @property
    def num_windows(self) -> int:
        return -(-self.num_rows // self.window_rows)

    def groups(self, epoch: int) -> Array:
        """The row groups that have rows, in the order of an epoch."""
        filled = np.flatnonzero(self._counts)
        return filled[self._permutation(len(filled), epoch, _GROUPS)] if self.shuffled else filled

    def layout(self, epoch: int) -> Layout:
        """The row groups of an epoch, and where each one's rows end in it."""
        groups = self.groups(epoch)
        return Layout(groups, np.cumsum(self._counts[groups]))

    def segments(self, layout: Layout, window: int) -> list[Segment]:
        """The rows of one window, in the order in which they are read."""
        start, stop = window * self.window_rows, min((window + 1) * self.window_rows, self.num_rows)
        first = int(np.searchsorted(layout.ends, start, side="right"))
        last = int(np.searchsorted(layout.ends, stop, side="left")) + 1
        found = []
        for group, end in zip(
            layout.groups[first:last].tolist(), layout.ends[first:last].tolist(), strict=True
        ):
            begin = end - self.counts[group]
            found.append(Segment(group, max(start, begin) - begin, min(stop, end) - begin))
        return found

    def batches(
        self, epoch: int, window: int, lengths: Int64[np.ndarray, " W"]
    ) -> list[Int64[np.ndarray, " _"]]:
        """The batches of a window as indices into its rows, given their lengths in tokens."""
        if not self.shuffled:
            return _cut(np.argsort(lengths, kind="stable"), self.batch_size)
        rows = self._permutation(len(lengths), epoch, _ROWS, window)
        runs = _cut(rows, self.batch_size * BATCHES_A_RUN)
        sorted_runs = [run[np.argsort(lengths[run], kind="stable")] for run in runs]
        batches = [batch for run in sorted_runs for batch in _cut(run, self.batch_size)]
        return [batches[i] for i in self._permutation(len(batches), epoch, _BATCHES, window)]

    def _permutation(self, size: int, *key: int) -> Int64[np.ndarray, " M"]:
        """A permutation decided by the seed and the key alone: Philox's raw stream is fixed for ever (NEP 19)."""
        stream = np.random.Philox(np.random.SeedSequence([self.seed, *key])).random_raw(size)
        order: Array = np.argsort(np.asarray(stream, np.uint64), kind="stable")
        return order


def _cut(rows: Int64[np.ndarray, " M"], size: int) -> list[Int64[np.ndarray, " _"]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def held_out(document_hash: UInt8[np.ndarray, "R 16"], fraction: float) -> Bool[np.ndarray, " R"]:
    """`schemas.identity.is_held_out` of each row."""
    words = np.ascontiguousarray(document_hash[:, 8:16]).view("<u8")[:, 0]
    below: Array = words < np.uint64(int(fraction * 2**64))
    return below


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a cache's held-out split, which goes by document: a function of its hash and the fraction."""

    cache: Cache
    eval_fraction: float
    is_eval: bool

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be in [0, 1), but got {self.eval_fraction}")

    def counts(self) -> tuple[int, ...]:
        """Rows of each row group on this side, from the identity columns alone (a few bytes a row)."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(self._shard_counts, self.cache.shards)
            return tuple(count for counts in found for count in counts)

    def _shard_counts(self, shard: Shard) -> list[int]:
        chosen = self._chosen(self.cache.identities(shard))
        sizes = [group.examples for group in self.cache.footers[shard.name].footer.row_groups]
        return [int(part.sum()) for part in np.split(chosen, np.cumsum(sizes)[:-1])]

    def read(self, group: int) -> Rows:
        """A row group's rows on this side, checked."""
        rows, chosen = self.whole(group)
        return rows.take(chosen)

    def whole(self, group: int) -> Chosen:
        """A row group, checked, and which of its rows are on this side."""
        rows = self.cache.read(self.cache.row_groups[group])
        return rows, np.flatnonzero(self._chosen(rows))

    def _chosen(self, rows: Rows) -> Bool[np.ndarray, " R"]:
        chosen: Array = held_out(rows.array("document_hash"), self.eval_fraction) == self.is_eval
        return chosen


class Window(NamedTuple):
    """Rows in memory, and where they stand."""

    epoch: int
    number: int
    rows: Pool


def read_windows(side: Side, order: Order, epoch: int, window: int) -> Iterator[Window]:
    """The windows from an address on, epoch after epoch, without end; each row group is read when its turn comes."""
    held: tuple[int, Chosen] | None = None
    while order.num_rows:
        layout = order.layout(epoch)
        for number in range(window, order.num_windows):
            parts = []
            for segment in order.segments(layout, number):
                if held is None or held[0] != segment.group:
                    held = segment.group, side.whole(segment.group)
                rows, chosen = held[1]
                parts.append((rows, chosen[segment.first : segment.last]))
            yield Window(epoch, number, Pool(parts))
        epoch, window, held = epoch + 1, 0, None
