"""The index of row counts: of every live shard, beside the log, so that a training starts without reading a shard.

A commit names in the log the *segments* of its version's index: small files, each named by the hash of its bytes. It
writes one for the shards that are new and takes smaller segments into it, so that a version has `MAX_SEGMENTS` of them
at most, and each row is written again a few times only, however many commits follow. Shards that left stay in a segment
until they are more than half of all; then it is written anew.

A segment says nothing that the shards do not say. So one that is lost or damaged is an error to nobody: what it said is
counted again, by a reader for itself, and by the next commit for all.

Cost at a commit: at most `MAX_SEGMENTS` reads and one write; one read of each new shard's end, where its counts were
not told; and a pass over what the index does not have, once, where an earlier release wrote it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from schemas.errors import CorruptionError, TeachonceError
from schemas.identity import DEFAULT_EVAL_FRACTION, held_out_below
from schemas.shards.group_counts import count_groups
from schemas.shards.held_out import GroupCounts, counts_from_bytes
from schemas.shards.reader import open_footer
from schemas.shards.seal import Shard
from schemas.spec import Spec
from schemas.storage.storage import Storage
from schemas.versions.row_table import RowTable, hash_of

INDEX_FOLDER = "_teachonce/index"
MAX_SEGMENTS = 8
_GROWTH = 2
"""A segment stays apart while it holds more than so many times the shards that come."""
_THREADS = 16
_BELOW = held_out_below(DEFAULT_EVAL_FRACTION)
_SEGMENT = re.compile(rf"{INDEX_FOLDER}/(?P<shards>[0-9]+)-(?P<hash>[0-9a-f]{{32}})\.zst")
_LOG = logging.getLogger(__name__)


class _Part(NamedTuple):
    """A segment that was read, and what of it is live."""

    name: str
    shards: int
    """In all."""
    live: RowTable


def index_after(
    storage: Storage, spec: Spec, before: Sequence[str], live: Sequence[Shard], told: Mapping[str, bytes]
) -> tuple[str, ...]:
    """Puts what is missing in the index that a commit builds on, and names the segments of its own.

    A shard that cannot be read is left out, and told in the log.

    Args:
        before: the segments of the version that the commit builds on.
        live: the shards that are live after the commit.
        told: counts of new shards, by name (`counts_to_bytes`).

    Raises:
        CacheError: the store refuses the new segment.
    """
    parts, missing = _live_parts(storage, before, live)
    new = _count_missing(storage, spec, missing, told)
    is_stale = sum(part.shards for part in parts) > 2 * sum(len(part.live) for part in parts)
    parts.sort(key=lambda part: (part.shards, part.name))
    while parts and (is_stale or parts[0].shards <= _GROWTH * len(new) or len(parts) >= MAX_SEGMENTS):
        new = RowTable.concatenate([new, parts.pop(0).live])
    written = [write_segment(storage, new)] if len(new) else []
    return tuple(sorted([*written, *(part.name for part in parts)]))


def _live_parts(
    storage: Storage, names: Sequence[str], live: Sequence[Shard]
) -> tuple[list[_Part], list[Shard]]:
    """The segments that hold live shards, and the live shards that none holds."""
    parts, missing = [], list(live)
    for name in names[:MAX_SEGMENTS]:
        table = read_segment(storage, name)
        places = table.find(missing)
        missing = [shard for shard, place in zip(missing, places.tolist(), strict=True) if place < 0]
        if (found := np.unique(places[places >= 0])).size:
            parts.append(_Part(name, len(table), table.take(found)))
    return parts, missing


def _count_missing(
    storage: Storage, spec: Spec, missing: Sequence[Shard], told: Mapping[str, bytes]
) -> RowTable:
    def counted(shard: Shard) -> GroupCounts | None:
        if data := told.get(shard.name):
            return counts_from_bytes(data)
        try:
            opened = open_footer(storage, shard.name, size=shard.size_bytes)
            return count_groups(storage, shard.name, opened, spec, DEFAULT_EVAL_FRACTION)
        except TeachonceError:
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip((shard.name for shard in missing), pool.map(counted, missing), strict=True))
    whole = {name: counts for name, counts in found.items() if counts is not None}
    if len(whole) < len(missing):
        lost = len(missing) - len(whole)
        _LOG.warning("%d live shards cannot be read, and are left out of the index of row counts", lost)
    return RowTable.of(whole)


def write_segment(storage: Storage, table: RowTable) -> str:
    """Stores a segment, and names it. One that is there is written again: it may be damaged, or about to be deleted."""
    data = table.to_bytes(_BELOW)
    name = f"{INDEX_FOLDER}/{len(table)}-{hash_of(data)}.zst"
    storage.put(name, data)
    return name


def read_segment(storage: Storage, name: str) -> RowTable:
    """One segment; an empty one where it is lost or damaged, which the log tells."""
    try:
        return _read_segment(storage, name)
    except CorruptionError as error:
        _LOG.warning("a segment of the index is passed over, and its shards are counted again: %s", error)
        return RowTable.of({})


def _read_segment(storage: Storage, name: str) -> RowTable:
    where = f"{storage.root}/{name}"
    match = _SEGMENT.fullmatch(name)
    if match is None:
        raise CorruptionError("the log names a segment of the index that is none", where=storage.root)
    try:
        data = storage.read(name)
    except FileNotFoundError as error:
        raise CorruptionError("a segment of the index is missing", where=where) from error
    if hash_of(data) != match["hash"]:
        raise CorruptionError("a segment of the index is not the one that the log means", where=where)
    return RowTable.from_bytes(data, _BELOW, where)
