"""The held-out rows of a cache, in the order of the cache, a row group at a time; of all documents or of one half.

The halves go by other bits of a document's hash than the split: all windows of a document stand in one half, which is a
random sample of the held-out documents. What is fitted on one may be measured on the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from schemas.cache import Cache
from schemas.cli.progress import Counted
from schemas.errors import UsageError
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from trainer.batches.batch import Batch
from trainer.batches.collate import Collation
from trainer.batches.pool import Pool
from trainer.stream.order import by_length
from trainer.stream.replay import BATCHES_AHEAD, Ahead
from trainer.stream.side import Side
from trainer.stream.where import Where

PASS = Counted("evaluate", "rows", 0)
"""How far this process's last pass over held-out rows is: for the eye alone."""


class HeldOut:
    """The held-out rows of a cache, or one half of them."""

    def __init__(
        self,
        *,
        cache: Cache,
        eval_fraction: float,
        batch_size: int,
        where: Where | None = None,
        half: int | None = None,
    ) -> None:
        """`half` is 0 or 1; None: all rows."""
        if where is not None:
            where.check(cache.spec)
        self._side = Side(cache=cache, eval_fraction=eval_fraction, is_eval=True, where=where)
        counts = self._side.counts()
        self._counts = {group: int(counts[group]) for group in np.flatnonzero(counts).tolist()}
        self._batch_size, self._half = batch_size, half
        if not self._counts:
            raise UsageError(
                "no document is held out" if where is None else f"no held-out row meets --where {where}",
                where=cache.storage.root,
                got=f"eval_fraction {eval_fraction:g} of {cache.totals.examples} rows",
                do="Name a larger --eval_fraction, also to train the student, which else has seen what is added; or "
                "precompute more documents",
            )

    def rows(self) -> Iterator[Rows]:
        """The rows of each row group that has any."""
        done, total = 0, sum(self._counts.values())
        for group, count in self._counts.items():
            PASS.set(done, total)
            done += count
            rows, chosen, _ = self._side.counted(group, count)
            if self._half is not None:
                chosen = chosen[in_half(rows, self._half)[chosen]]
            if len(chosen):
                yield rows.take(chosen)
        PASS.set(total, total)

    def batches(self, collation: Collation) -> Iterator[Batch]:
        """All batches, once, collated ahead in a thread; of similar lengths within a row group."""
        ahead = Ahead(lambda: self._collated(collation), BATCHES_AHEAD)
        try:
            yield from ahead
        finally:
            ahead.close()

    def _collated(self, collation: Collation) -> Iterator[Batch]:
        for rows in self.rows():
            pool = Pool([(rows, np.arange(len(rows)))])
            yield from collation.each(pool, by_length(pool.lengths, self._batch_size))


def in_half(rows: Rows, half: int) -> Bool[np.ndarray, " R"]:
    """Which rows are of a half, by a bit of the document's hash that the split does not look at."""
    found: Array = rows.array("document_hash")[:, 0] % 2 == half
    return found
