"""`vacuum`: deletes the files that no kept version needs. It alone, and `forget`, ever make a cache's folder smaller.

Kept are the newest version and each one that was current within the given time. A file goes only if none of them needs
it *and* it was written before that time. Orphans (shards that no version ever added) and parts of unfinished writes
may belong to a run that still lives: while there is such a run, they are left alone. So is a shard that was written
again after it had left: that run may be about to add it once more. What bears no name of ours is left alone, and told.
Row counts go with the versions that they are of, whatever their age: a segment of the index that no kept version names,
while no run lives, which may be about to name it; and what a reader kept of a version that is kept no more.

Cost: one listing, and one small read of each version's log entry. No shard is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from schemas.cache import Cache
from schemas.storage.storage import Storage, StoredFile
from schemas.versions.commits import Entry, read_version
from schemas.versions.history import (
    OWN_FOLDER,
    added_names,
    dead_runs,
    is_ours,
    is_shard,
    lease_files,
    left_at,
    living_runs,
    own_parts,
    read_entries,
    strangers,
    unreadable_versions,
)
from schemas.versions.row_counts import needless
from schemas.versions.row_index import INDEX_FOLDER


@dataclass(frozen=True, kw_only=True)
class Vacuumed:
    """What `vacuum` deleted; with `dry_run` what it would delete."""

    path: str
    version: int
    """The newest."""
    oldest_kept: int
    dry_run: bool
    old_shards: int
    """Of versions that are given up."""
    orphans: int
    parts: int
    """Of unfinished writes."""
    index_files: int
    """Segments of the index of row counts, and kept counts."""
    bytes: int
    """Of shards and parts."""
    spared: int
    """Orphans and parts, old enough, that were left alone because a run lives."""
    living_runs: tuple[str, ...]
    dead_runs: tuple[str, ...]
    """Leases of runs that are taken for dead; they are removed too."""
    unreadable_versions: tuple[int, ...]
    """Every version that can no longer be read, also those given up before."""
    strangers: tuple[str, ...]
    """What is not the cache's, by its name, and was left alone."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def vacuum(path: str | os.PathLike[str], older_than_seconds: float, *, dry_run: bool = False) -> Vacuumed:
    """Deletes shards, orphans and parts of unfinished writes that no kept version needs.

    Raises:
        ValueError: the time is negative.
        NoCacheError: nothing was committed there.
        CorruptionError: the log is damaged; nothing was deleted.
        CacheError: a link stands in the folder where none is followed; nothing was deleted.
    """
    if not older_than_seconds >= 0:
        raise ValueError(f"older_than_seconds cannot be {older_than_seconds!r}")
    cut = time.time() - older_than_seconds
    Storage.at(path).check_links(OWN_FOLDER)
    storage = Storage.at(path)
    living = living_runs(storage)  # before the log is read: a run that ends in between has committed
    indexed = [name for name in storage.names(INDEX_FOLDER) if is_ours(name)]  # before it too
    cache = Cache.open(path)
    files, parts = storage.files(), own_parts(storage)
    entries = read_entries(storage, cache.version)
    oldest = oldest_kept(entries, cut)
    unneeded = _unneeded(files, needed_names(storage, entries, oldest), cut)
    known, left = added_names(entries), left_at(entries)
    old = [file for file in unneeded if file.name in known and file.modified <= left.get(file.name, 0.0)]
    loose = [*sorted({*unneeded}.difference(old)), *(file for file in parts if file.modified <= cut)]
    living = living or living_runs(storage)
    gone, spared = (old, loose) if living else ([*old, *loose], [])
    counts = [] if living else needless(indexed, (entry.record for entry in entries[oldest:]))
    dead = dead_runs(storage)
    if not dry_run:
        leases = [name for run in dead for name in lease_files(run)]
        storage.delete([*(file.name for file in gone), *counts, *leases])
    present = {file.name for file in files} - {file.name for file in gone}
    return Vacuumed(
        path=storage.root,
        version=cache.version,
        oldest_kept=oldest,
        dry_run=dry_run,
        old_shards=len(old),
        orphans=sum(is_shard(file.name) for file in gone) - len(old),
        parts=sum(not is_shard(file.name) for file in gone),
        index_files=len(counts),
        bytes=sum(file.size_bytes for file in gone),
        spared=len(spared),
        living_runs=tuple(living),
        dead_runs=tuple(dead),
        unreadable_versions=tuple(unreadable_versions(entries, present)),
        strangers=tuple(strangers(storage)),
    )


def oldest_kept(entries: Sequence[Entry], cut: float) -> int:
    """The oldest version that was still current at `cut` or later; it and all that follow are kept."""
    ends = [entry.record.time_ms / 1000 for entry in entries[1:]]
    return next((number for number, end in enumerate(ends) if end >= cut), len(entries) - 1)


def needed_names(storage: Storage, entries: Sequence[Entry], oldest: int) -> set[str]:
    """Every shard that the version `oldest` or a later one needs, by what the log vouches for."""
    live = {shard.name for shard in read_version(storage, oldest).shards}
    return live | added_names(entries[oldest + 1 :])


def _unneeded(files: Sequence[StoredFile], needed: set[str], cut: float) -> list[StoredFile]:
    """Shards that are old enough to go."""
    return [f for f in files if is_shard(f.name) and f.name not in needed and f.modified <= cut]
