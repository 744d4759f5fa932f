"""The two sides of a cache: what is trained on, and what is held out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from schemas.cache import Cache
from schemas.errors import CorruptionError
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.seal import Shard
from trainer.stream.pool import Chosen

_THREADS = 16


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

    def counts(self) -> Int64[np.ndarray, " G"]:
        """Rows of each row group on this side, from the identity columns alone (a few bytes a row)."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(self._shard_counts, self.cache.shards)
            return np.array([count for counts in found for count in counts], np.int64)

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

    def counted(self, group: int, count: int) -> Chosen:
        """As `whole`, where the order counts on so many rows.

        Raises:
            CorruptionError: there are more, or fewer.
        """
        rows, chosen = self.whole(group)
        if len(chosen) != count:
            raise CorruptionError(
                "a row group has not the rows that were counted when the run began",
                where=f"{self.cache.storage.root}, row group {group}",
                expected=f"{count} on this side of the split",
                got=len(chosen),
            )
        return rows, chosen

    def _chosen(self, rows: Rows) -> Bool[np.ndarray, " R"]:
        chosen: Array = held_out(rows.array("document_hash"), self.eval_fraction) == self.is_eval
        return chosen
