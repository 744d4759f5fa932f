"""Which files in a cache's folder are what: live in some version, finished by a run that never committed, or neither.

A run lists the folder once, before it starts. A shard that no version ever added is an *orphan*: a run finished it
and then crashed, or still lives. The next run adopts what it can use of it. A shard that some version has removed is
never an orphan, so what has left a cache does not come back.

Cost: one listing; and, where the folder holds a shard that is not live, one small read of each version's log entry.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from schemas.commits import NO_VERSION, Shard, Version, read_entry
from schemas.errors import CorruptionError
from schemas.shards import parse_name
from schemas.storage import Storage, StoredFile

LEASES_FOLDER = "_teachonce/leases"
LEASE_SECONDS = 24 * 3600.0
"""A run that has not finished a unit for so long is taken for dead."""
_THREADS = 16


def orphans(storage: Storage, base: Version | None) -> list[StoredFile]:
    """Shards under the root that no version up to `base` ever added, by name."""
    live = {shard.name for shard in base.shards} if base else set()
    strangers = [file for file in storage.files() if is_shard(file.name) and file.name not in live]
    if not strangers or base is None:
        return strangers
    known = added_names(storage, base.number)
    return [file for file in strangers if file.name not in known]


def added_names(storage: Storage, number: int) -> set[str]:
    """Every shard that a version up to `number` ever added."""
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = pool.map(lambda n: read_entry(storage, n)[1], range(NO_VERSION + 1, number + 1))
        return {name for names in entries for name in names}


def is_shard(name: str) -> bool:
    """Whether a file's name is one that a writer gives."""
    try:
        parse_name(name)
    except CorruptionError:
        return False
    return True


def as_shard(file: StoredFile, examples: int) -> Shard:
    """A stored file as the log would have it."""
    return Shard(file.name, file.size_bytes, examples)


def take_lease(storage: Storage, run: str) -> None:
    """Says that a run lives; said again after each unit. While it does, `vacuum` leaves orphans alone."""
    storage.put(f"{LEASES_FOLDER}/{run}", f"{time.time():.0f}\n".encode())


def end_lease(storage: Storage, run: str) -> None:
    """Says that a run has ended."""
    storage.delete([f"{LEASES_FOLDER}/{run}"])


def living_runs(storage: Storage) -> list[str]:
    """Runs that have not ended, and gave a sign of life within `LEASE_SECONDS`."""
    names = storage.names(LEASES_FOLDER)
    signs = ((name, _sign(storage, name)) for name in names)
    return [name.rpartition("/")[2] for name, at in signs if time.time() - at < LEASE_SECONDS]


def _sign(storage: Storage, name: str) -> float:
    try:
        return float(storage.read(name))
    except (FileNotFoundError, ValueError):
        return 0.0
