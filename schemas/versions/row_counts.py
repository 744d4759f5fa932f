"""How many rows each row group of a version has on each side of the held-out split.

At the default fraction the index says it, in a few small reads however many shards there are. At another, or where the
index lacks shards (an earlier release wrote them, or a segment is lost), the shards' identity columns are counted in
one pass, in threads; what comes out is kept beside the index, for the next who asks. What is kept is named by the live
shards and the fraction, so it is never out of date; a damaged one is counted anew.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from schemas.errors import CacheError, CorruptionError
from schemas.identity import DEFAULT_EVAL_FRACTION, held_out, held_out_below
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.group_counts import count_groups
from schemas.shards.held_out import GroupCounts
from schemas.shards.reader import OpenFooter
from schemas.shards.seal import Shard
from schemas.spec import Spec
from schemas.storage.storage import Storage
from schemas.versions.records import CommitRecord
from schemas.versions.row_index import INDEX_FOLDER, MAX_SEGMENTS, read_segment
from schemas.versions.row_table import RowTable

_THREADS, _FEW_THREADS = 16, 4
_KEPT = re.compile(rf"{INDEX_FOLDER}/(?P<live>[0-9a-f]{{32}})-[0-9a-f]{{16}}\.zst")
_LOG = logging.getLogger(__name__)


class RowCounts(NamedTuple):
    """Every row group of a version, by shard and place: the order of `Cache.row_groups`."""

    shard: Int64[np.ndarray, " G"]
    """The shard's number in `Cache.shards`."""
    place: Int64[np.ndarray, " G"]
    """The row group's place in its shard."""
    to_train: Int64[np.ndarray, " G"]
    """Rows that are not held out."""
    held_out: Int64[np.ndarray, " G"]
    eval_fraction: float


@dataclass(frozen=True, kw_only=True)
class Counting:
    """The live shards of a version, and what their rows are counted with."""

    storage: Storage
    spec: Spec
    shards: tuple[Shard, ...]
    record: CommitRecord
    open_shard: Callable[[Shard], OpenFooter]

    def at(self, fraction: float) -> RowCounts:
        """The row counts at a fraction of documents held out.

        Raises:
            ValueError: the fraction is not in [0, 1).
            CorruptionError: a shard must be counted, and is missing or damaged.
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"the share of documents held out must be in [0, 1), but got {fraction!r}")
        below = held_out_below(fraction)
        is_default = below == held_out_below(DEFAULT_EVAL_FRACTION)
        names = self.record.index[:MAX_SEGMENTS] if is_default else ()
        table = RowTable.concatenate([read_segment(self.storage, name) for name in names])
        places = table.find(self.shards)
        if (places < 0).any():
            table = self._completed(table.take(np.unique(places[places >= 0])), fraction, below)
            places = table.find(self.shards)
        if (places < 0).any():
            raise CorruptionError("shards do not hold the rows that the log counts", where=self.storage.root)
        return _laid_out(table.take(places), fraction)

    def filtered(
        self, counts: RowCounts, key: int, count: Callable[[int, int], int]
    ) -> Int64[np.ndarray, " _"]:
        """How many rows of each row group a filter chooses, as `count` says of a shard's number and a place in it. Each
        is asked once, in threads; what comes out is kept under the key, 64 bits that say what is counted.

        Raises:
            CorruptionError: a shard is missing or damaged.
        """
        name = kept_name(self.record.live_hash, key)
        table, is_damaged = _read_kept(self.storage, name, key)
        if (table.find(self.shards) < 0).any():
            _LOG.info("counting the rows that are chosen, of %d row groups", len(counts.shard))
            with ThreadPoolExecutor(_FEW_THREADS) as pool:
                chosen = [*pool.map(count, counts.shard.tolist(), counts.place.tolist())]
            pairs = np.stack([counts.to_train + counts.held_out, np.array(chosen, np.int64)], axis=1)
            parts = np.split(pairs.astype(np.int32), np.flatnonzero(np.diff(counts.shard)) + 1)
            names = [shard.name for shard in self.shards]
            table = RowTable.of(dict(zip(names, parts, strict=True)))
            self._keep(name, table, key, is_damaged=is_damaged)
        found: Array = table.take(table.find(self.shards)).held_out.values.astype(np.int64)
        return found

    def _completed(self, known: RowTable, fraction: float, below: int) -> RowTable:
        """What is kept; else what is known and all else counted, which is kept from now on."""
        name = kept_name(self.record.live_hash, below)
        kept, is_damaged = _read_kept(self.storage, name, below)
        if (kept.find(self.shards) >= 0).all():
            return kept
        places = known.find(self.shards).tolist()
        missing = [shard for shard, place in zip(self.shards, places, strict=True) if place < 0]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = pool.map(lambda shard: self._counted(shard, fraction), missing)
            found = dict(zip((shard.name for shard in missing), counts, strict=True))
        table = RowTable.concatenate([known, RowTable.of(found)])
        self._keep(name, table, below, is_damaged=is_damaged)
        return table

    def _keep(self, name: str, table: RowTable, below: int, *, is_damaged: bool) -> None:
        put = self.storage.put if is_damaged else self.storage.put_if_absent
        try:
            put(name, table.to_bytes(below))
        except CacheError as error:
            _LOG.info("row counts are not kept, and will be counted again: %s", error)

    def _counted(self, shard: Shard, fraction: float) -> GroupCounts:
        return count_groups(self.storage, shard.name, self.open_shard(shard), self.spec, fraction)


def needless(names: Iterable[str], records: Iterable[CommitRecord]) -> list[str]:
    """Files of the index that say no row counts of these versions: segments that none names, and what was kept."""
    versions = [*records]
    named = {name for record in versions for name in record.index}
    hashes = {record.live_hash for record in versions}
    return [name for name in names if name not in named and _kept_for(name) not in hashes]


def _kept_for(name: str) -> str | None:
    """The hash of the live shards whose counts a file keeps; None where it is another file's name."""
    match = _KEPT.fullmatch(name)
    return match["live"] if match else None


def kept_name(live_hash: str, below: int) -> str:
    """Where the counts of all live shards are kept, at a fraction."""
    return f"{INDEX_FOLDER}/{live_hash}-{below:016x}.zst"


def _read_kept(storage: Storage, name: str, below: int) -> tuple[RowTable, bool]:
    """What is kept, or nothing; and whether what stands there is damaged."""
    try:
        return RowTable.from_bytes(storage.read(name), below, f"{storage.root}/{name}"), False
    except FileNotFoundError:
        return RowTable.of({}), False
    except CorruptionError as error:
        _LOG.warning("kept row counts are passed over, and counted again: %s", error)
        return RowTable.of({}), True


def _laid_out(table: RowTable, fraction: float) -> RowCounts:
    lengths, starts = table.examples.lengths, table.examples.offsets[:-1]
    rows, held = (column.values.astype(np.int64) for column in (table.examples, table.held_out))
    return RowCounts(
        shard=np.repeat(np.arange(len(table)), lengths),
        place=np.arange(len(rows)) - np.repeat(starts, lengths),
        to_train=rows - held,
        held_out=held,
        eval_fraction=fraction,
    )


def check_footer(counts: RowCounts, shard: int, place: int, opened: OpenFooter, where: str) -> None:
    """A shard's footer has the row groups that the index counts, and as many rows in the one that is asked for.

    Raises:
        CorruptionError: naming the shard and the row group.
    """
    first, end = np.searchsorted(counts.shard, [shard, shard + 1])
    groups = opened.footer.row_groups
    if not 0 <= place < end - first or end - first != len(groups):
        raise _disagrees(where, f"{end - first} row groups", f"{len(groups)}")
    expected = int(counts.to_train[first + place] + counts.held_out[first + place])
    if expected != groups[place].examples:
        raise _disagrees(where, f"{expected} rows", f"{groups[place].examples}")


def check_rows(counts: RowCounts, shard: int, place: int, rows: Rows, where: str) -> None:
    """A row group holds as many rows of each side as the index counts.

    Raises:
        CorruptionError: naming the shard and the row group.
    """
    expected = int(counts.held_out[np.searchsorted(counts.shard, shard) + place])
    got = int(held_out(rows.array("document_hash"), counts.eval_fraction).sum())
    if expected != got:
        raise _disagrees(where, f"{expected} rows held out", f"{got}")


def _disagrees(where: str, expected: str, got: str) -> CorruptionError:
    return CorruptionError(
        "the index of row counts is not that of the shard",
        where=where,
        expected=expected,
        got=got,
        do=f"Remove {INDEX_FOLDER}: it is made anew",
    )
