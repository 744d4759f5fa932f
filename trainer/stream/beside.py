"""The same examples in several caches: which rows of the first one all have, and where the others have them.

Caches over one corpus share an example's id where one tokenizer, task, window and seed made it (`example_id` hashes
them and the document, and nothing of the teacher), so ids are what is matched. That a row has the same tokens in all is
checked when it is read. Cost: at the start the identity columns of all caches are read, and 28 bytes a row are held;
units are ranges of ids, so a row group of one cache lies in few of another that was made in the same runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from schemas.cache import Cache
from schemas.errors import CorruptionError
from schemas.identity import held_out
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows

_GROUPS_HELD = 16
"""Row groups of other caches in memory beside those that are trained on: neighbours of the first cache share some."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """A cache's examples by id."""

    cache: Cache
    ids: Array
    """16 bytes each, in order."""
    row: Int64[np.ndarray, " R"]
    """Of each, its number in the cache, row group after row group."""
    ends: Int64[np.ndarray, " G"]
    """Rows up to the end of each row group."""

    def find(self, ids: Array) -> Int64[np.ndarray, " M"]:
        """The row number of each id; -1 where there is none."""
        place = np.minimum(np.searchsorted(self.ids, ids), max(0, len(self.ids) - 1))
        found = self.ids[place] == ids if len(self.ids) else np.zeros(len(ids), np.bool_)
        return np.where(found, self.row[place] if len(self.ids) else -1, -1)

    def read(self, group: int) -> Rows:
        """One of its row groups."""
        counts = self.cache.row_counts()
        return self.cache.read_group(int(counts.shard[group]), int(counts.place[group]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """What other caches hold of the first one's examples."""

    others: tuple[Index, ...]
    first: Cache
    hashes: Array
    """uint8 [R, 16]: the document of each row of the first cache."""
    matched: Bool[np.ndarray, " R"]
    """Which of its rows all have."""
    ends: Int64[np.ndarray, " G"]
    read: Callable[[int, int], Rows]
    """A row group of one of the others, by their numbers; some of the last are held."""

    @classmethod
    def of(cls, caches: Sequence[Cache]) -> Beside:
        """Reads who is in which cache.

        Raises:
            CorruptionError: a shard is missing or damaged.
        """
        first, *others = caches
        ids, hashes, ends = _identities(first)
        indexes = tuple(_index(cache) for cache in others)
        matched = np.ones(len(ids), np.bool_)
        for index in indexes:
            matched &= index.find(ids) >= 0
        read = functools.lru_cache(_GROUPS_HELD)(lambda number, group: indexes[number].read(group))
        return cls(others=indexes, first=first, hashes=hashes, matched=matched, ends=ends, read=read)

    @property
    def left_out(self) -> dict[str, int]:
        """Rows of each cache that not all have, by its path."""
        both = int(self.matched.sum())
        rows = [len(self.matched), *(len(index.ids) for index in self.others)]
        caches = [self.first, *(index.cache for index in self.others)]
        return {cache.storage.root: number - both for cache, number in zip(caches, rows, strict=True)}

    def counts(self, eval_fraction: float, *, is_eval: bool) -> Int64[np.ndarray, " G"]:
        """Rows of each row group of the first cache on a side, that all have."""
        chosen = self.matched & (held_out(self.hashes, eval_fraction) == is_eval)
        return np.add.reduceat(np.append(chosen, [False]).astype(np.int64), self._starts) * (self._sizes > 0)

    def has(self, group: int) -> Bool[np.ndarray, " R"]:
        """Which rows of a row group of the first cache all have."""
        end = int(self.ends[group])
        return self.matched[end - int(self._sizes[group]) : end]

    def rows(self, rows: Rows, chosen: Int64[np.ndarray, " M"]) -> tuple[Rows, ...]:
        """The chosen of these rows, in order, as each of the others holds them.

        Raises:
            CorruptionError: one has other tokens or positions there.
        """
        ids = _strings(rows.array("example_id")[chosen])
        wanted = rows.take(chosen, ("example_id", "input_ids", "position_index"))
        return tuple(self._of(number, ids, wanted) for number in range(len(self.others)))

    def _of(self, number: int, ids: Array, wanted: Rows) -> Rows:
        index = self.others[number]
        places = index.find(ids)
        groups = np.searchsorted(index.ends, places, side="right")
        order, parts = np.argsort(groups, kind="stable"), []
        starts = np.concatenate([[0], index.ends[:-1]])
        for group in np.unique(groups).tolist():
            own = places[order][groups[order] == group]
            parts.append(self.read(number, group).take(own - starts[group]))
        found = (
            Rows.concatenate(parts).take(np.argsort(order)) if parts else self.read(number, 0).take(places)
        )
        for name in ("input_ids", "position_index"):
            ours, theirs = wanted.ragged(name), found.ragged(name)
            if not (
                np.array_equal(ours.offsets, theirs.offsets) and np.array_equal(ours.values, theirs.values)
            ):
                raise CorruptionError(
                    f"two caches have one example's id with other {name}",
                    where=f"{self.first.storage.root}, {index.cache.storage.root}",
                    do="Run `teachonce verify` on both",
                )
        return found

    @property
    def _sizes(self) -> Int64[np.ndarray, " G"]:
        found: Array = np.diff(self.ends, prepend=0)
        return found

    @property
    def _starts(self) -> Int64[np.ndarray, " G"]:
        found: Array = self.ends - self._sizes
        return found


def _index(cache: Cache) -> Index:
    ids, _, ends = _identities(cache)
    order = np.argsort(ids, kind="stable")
    return Index(cache=cache, ids=ids[order], row=order, ends=ends)


def _identities(cache: Cache) -> tuple[Array, Array, Array]:
    """Ids and document hashes of a cache's rows, row group after row group, and where each of these ends."""
    ids, hashes = [], []
    for shard in cache.shards:
        rows = cache.identities(shard)
        ids.append(_strings(rows.array("example_id")))
        hashes.append(rows.array("document_hash"))
    ends = np.cumsum([ref.group.examples for ref in cache.row_groups])
    return np.concatenate(ids), np.concatenate(hashes), ends.astype(np.int64)


def _strings(ids: Array) -> Array:
    """Ids of 16 bytes as values that numpy orders."""
    found: Array = np.ascontiguousarray(ids).view("S16")[:, 0]
    return found
