"""Row counts of a shard's row groups, from its footer where that says them, else from its identity columns.

And footers for those who read row groups in any order: a bounded number of them is held.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from schemas.errors import CorruptionError
from schemas.identity import DEFAULT_EVAL_FRACTION, held_out, held_out_below
from schemas.shards.held_out import GroupCounts
from schemas.shards.parquet_limits import check_counts
from schemas.shards.reader import OpenFooter, read_identities
from schemas.shards.seal import Shard
from schemas.spec import Spec
from schemas.storage.storage import Storage

FOOTERS_HELD = 64
"""Footers in memory at most: of 32 row groups about 1 MiB each, nearly all of it as Arrow holds them."""
_MOST_EXAMPLES = 2**31 - 1


def count_groups(storage: Storage, name: str, opened: OpenFooter, spec: Spec, fraction: float) -> GroupCounts:
    """Rows of each row group, and those held out at a fraction. Reads nothing where the footer says it.

    Raises:
        CorruptionError: the footer counts what cannot be, or the identity columns are not those that were sealed.
    """
    for place, group in enumerate(opened.footer.row_groups):
        where = f"{storage.root}/{name}, row group {place}"
        check_counts(group, spec, where)
        if group.examples > _MOST_EXAMPLES:
            raise CorruptionError("a row group has more rows than any writer gives it", where=where)
    examples = np.array([group.examples for group in opened.footer.row_groups], np.int32)
    is_default = held_out_below(fraction) == held_out_below(DEFAULT_EVAL_FRACTION)
    if is_default and opened.held_out is not None:
        return np.stack([examples, np.array(opened.held_out, np.int32)], axis=1)
    hashes = read_identities(storage, name, opened, spec).array("document_hash")
    parts = np.split(held_out(hashes, fraction), np.cumsum(examples)[:-1])
    return np.stack([examples, np.array([part.sum() for part in parts], np.int32)], axis=1)


class Footers:
    """The footers that were asked for last, opened when they are. Safe to share between threads."""

    def __init__(self, open_shard: Callable[[Shard], OpenFooter], most: int = FOOTERS_HELD) -> None:
        self._open_shard, self._most = open_shard, most
        self._held: collections.OrderedDict[str, Future[OpenFooter]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def of(self, shard: Shard) -> OpenFooter:
        """One shard's footer.

        Raises:
            TeachonceError: as `open_shard` does.
        """
        with self._lock:
            found = self._held.get(shard.name)
            if is_first := found is None:
                found = self._held[shard.name] = Future()
            self._held.move_to_end(shard.name)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        if is_first:  # not under the lock: it is a request, for which others that ask wait
            try:
                found.set_result(self._open_shard(shard))
            except BaseException as error:  # noqa: BLE001  (it is raised in every thread that waits)
                with self._lock:
                    if self._held.get(shard.name) is found:
                        del self._held[shard.name]
                found.set_exception(error)
        return found.result()
