"""The two sides of a cache: what is trained on, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from schemas.cache import Cache
from schemas.errors import CorruptionError
from schemas.identity import held_out
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.versions.row_index import INDEX_FOLDER
from trainer.batches.pool import Chosen
from trainer.stream.beside import Beside
from trainer.stream.held import Held
from trainer.stream.where import Where


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a cache's held-out split, which goes by document: a function of its hash and the fraction."""

    cache: Cache
    eval_fraction: float
    is_eval: bool
    where: Where | None = None
    """Which rows of the side."""
    beside: Beside | None = None
    """Other caches that must have a row too, and give theirs with it."""
    held: Held | None = None
    """What row groups stay in memory; both sides may share it. None: none does."""

    def __post_init__(self) -> None:
        if not 0 <= self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be in [0, 1), but got {self.eval_fraction}")

    def counts(self) -> Int64[np.ndarray, " _"]:
        """Rows of each row group on this side, from the cache's index: no shard is read at the default fraction. Those
        that `where` chooses are counted once."""
        if self.beside is not None:
            return self.beside.counts(self.eval_fraction, is_eval=self.is_eval)
        if self.where is not None:
            key = self.where.key(self.eval_fraction, self.is_eval)
            return self.cache.filtered_counts(key, lambda rows: int(self._chosen(rows).sum()))
        counts = self.cache.row_counts(self.eval_fraction)
        found: Array = (counts.held_out if self.is_eval else counts.to_train).astype(np.int64)
        return found

    def read(self, group: int) -> Rows:
        """A row group's rows on this side, checked."""
        whole = self.whole(group)
        return whole.rows.take(whole.chosen)

    def whole(self, group: int) -> Chosen:
        """A row group, checked, and which of its rows are on this side.

        Raises:
            CorruptionError: its bytes are not what was sealed, or its rows not so many as were counted.
        """
        counts = self.cache.row_counts(self.eval_fraction)
        rows = self._rows(int(counts.shard[group]), int(counts.place[group]))
        chosen = self._chosen(rows)
        if self.beside is None:
            return Chosen(rows, np.flatnonzero(chosen))
        every = np.flatnonzero(chosen & self.beside.has(group))
        return Chosen(rows, every, self.beside.rows(rows, every))

    def counted(self, group: int, count: int) -> Chosen:
        """As `whole`, of a row group that an order counts on.

        Raises:
            CorruptionError: as `whole`; or other rows are chosen than were counted, so that some would be passed over.
        """
        whole = self.whole(group)
        if len(whole.chosen) != count:
            counts = self.cache.row_counts(self.eval_fraction)
            shard, place = self.cache.shards[counts.shard[group]], counts.place[group]
            raise CorruptionError(
                "a row group has not the rows that the run counts on",
                where=f"{self.cache.storage.root}/{shard.name}, row group {place}",
                expected=f"{count} that are chosen",
                got=len(whole.chosen),
                do=f"Remove {INDEX_FOLDER}: it is made anew",
            )
        return whole

    def _rows(self, shard: int, place: int) -> Rows:
        if self.held is None:
            return self.cache.read_group(shard, place)
        key = (self.cache.storage.root, self.cache.version, shard, place)
        return self.held.get(key, lambda: self.cache.read_group(shard, place))

    def _chosen(self, rows: Rows) -> Bool[np.ndarray, " R"]:
        chosen: Array = held_out(rows.array("document_hash"), self.eval_fraction) == self.is_eval
        return chosen if self.where is None else chosen & self.where.chosen(rows)
