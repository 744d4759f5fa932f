"""Verification: every byte, schema, encoding, count and id of a version.

All shards are looked at before an error is raised, so that it tells how many are broken.
Cost: one read of every shard, and about 60 bytes of memory an example, for the ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from schemas.errors import REPAIR, BrokenShardsError, CorruptionError, TeachonceError
from schemas.limits import told
from schemas.rows.columns import check_encodings
from schemas.rows.ragged import Array
from schemas.rows.rows import Rows
from schemas.shards.reader import OpenFooter, open_shard, read_group
from schemas.shards.seal import Shard, Totals, identity_hash
from schemas.spec import Header
from schemas.storage.storage import Storage

_THREADS = 4
_EXACT = ("examples", "tokens", "positions", "entries", "clamped_codes", "length_histogram")
"""Totals that are integers; sums of floats depend on their order."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked and found whole."""

    shards: int
    row_groups: int
    examples: int
    tokens: int
    bytes: int


class Checked(NamedTuple):
    """What is left of a whole shard for the checks across shards."""

    ids: Array
    row_groups: int
    totals: Totals


def verify_shards(
    storage: Storage,
    header: Header,
    shards: Sequence[Shard],
    totals: Totals,
    after: Callable[[], None] | None = None,
) -> Verified:
    """Checks the live shards of a version, one by one and against each other and the log's `totals`.

    Raises:
        BrokenShardsError: with every shard that is broken, and why.
        CorruptionError: they do not fit each other, or the log.
        CacheError: a shard cannot be reached, or is a newer format's: that is no damage.
    """
    results = try_shards(storage, header, shards, after)
    tried = zip(shards, results, strict=True)
    faults = {shard.name: found for shard, found in tried if isinstance(found, TeachonceError)}
    for fault in faults.values():
        if not isinstance(fault, CorruptionError):
            raise fault
    if faults:
        raise BrokenShardsError.of(faults, len(shards))
    checked = [result for result in results if isinstance(result, Checked)]
    _check_distinct([one.ids for one in checked], storage.root)
    check_totals(totals, sum((one.totals for one in checked), Totals()), storage.root)
    return Verified(
        shards=len(shards),
        row_groups=sum(one.row_groups for one in checked),
        examples=totals.examples,
        tokens=totals.tokens,
        bytes=sum(shard.size_bytes for shard in shards),
    )


def try_shards(
    storage: Storage,
    header: Header,
    shards: Sequence[Shard],
    after: Callable[[], None] | None = None,
) -> list[Checked | TeachonceError]:
    """What the check of each shard gives, or the error that it raises; `after` is called behind each."""

    def check(shard: Shard) -> Checked | TeachonceError:
        found = _try_check(storage, header, shard)
        if after is not None:
            after()
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(check, shards))


def _try_check(storage: Storage, header: Header, shard: Shard) -> Checked | TeachonceError:
    try:
        return check_shard(storage, header, shard)
    except TeachonceError as error:
        return error


def check_shard(storage: Storage, header: Header, shard: Shard) -> Checked:
    """Checks every byte, schema, encoding and count of one shard.

    Raises:
        CorruptionError: with the first thing that does not match.
    """
    opened = open_shard(storage, header, shard)
    where = f"{storage.root}/{shard.name}"
    with told("a shard's footer cannot be read", where, REPAIR):
        check_encodings(opened.metadata, header.spec, where)
    ids = []
    for place in range(len(opened.footer.row_groups)):
        with told("a row group cannot be checked", where, REPAIR):
            rows = read_group(storage, shard.name, opened, place, header.spec)
            _check_group(rows, opened, place, f"{where}, row group {place}")
        ids.append(rows.array("example_id"))
    joined = np.concatenate(ids)
    if not _ascends(joined):
        raise CorruptionError("example ids do not ascend", where=where, do=REPAIR)
    return Checked(joined, len(ids), opened.footer.totals)


def _check_group(rows: Rows, opened: OpenFooter, place: int, where: str) -> None:
    group = opened.footer.row_groups[place]
    if identity_hash(rows) != group.ids_hash:
        raise CorruptionError("a row group's ids are not those that were sealed", where=where, do=REPAIR)
    rows.check(where, deep=True)


def _ascends(ids: Array) -> bool:
    """Whether hashes (uint8 `[R, 16]`) stand in ascending order, each once."""
    high, low = np.ascontiguousarray(ids).view(">u8").T
    later = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return bool(later.all())


def _check_distinct(ids: Sequence[Array], where: str) -> None:
    every = np.concatenate([np.zeros((0, 16), np.uint8), *ids])
    high, low = every.view(">u8").T
    if not _ascends(every[np.lexsort([low, high])]):
        raise CorruptionError(
            "example ids stand in the cache more than once",
            where=where,
            do="Run `teachonce verify --repair`: the repeats leave",
        )


def check_totals(logged: Totals, counted: Totals, where: str) -> None:
    """Checks the log's integers against those of its shards.

    Raises:
        CorruptionError: with the first that differs.
    """
    for name in _EXACT:
        expected, got = getattr(logged, name), getattr(counted, name)
        if expected != got:
            raise CorruptionError(
                f"the log's {name} are not those of its shards",
                where=where,
                expected=expected,
                got=got,
                do="Run `teachonce verify --repair`: they are counted again",
            )
