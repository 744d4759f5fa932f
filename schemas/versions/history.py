"""Which files in a cache's folder are what: live in some version, finished by a run that never committed, or neither.

A run lists the folder once, before it starts. A shard that no version ever added is an *orphan*: a run finished it
and then crashed, or still lives. The next run adopts what it can use of it. A shard that some version has removed is
never an orphan, so what has left a cache does not come back. What bears no name that a writer gives is a *stranger*:
somebody else's, and never deleted.

Cost: one listing; and, where the folder holds a shard that is not live, one small read of each version's log entry.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from schemas.errors import CacheError, CorruptionError
from schemas.printable import printable
from schemas.shards.seal import Shard, parse_name
from schemas.storage.local_files import PART
from schemas.storage.storage import Storage, StoredFile
from schemas.versions.commits import NO_VERSION, Entry, Version, read_entry
from schemas.versions.delta import LOG_FOLDER

OWN_FOLDER = "_teachonce"
LEASES_FOLDER = f"{OWN_FOLDER}/leases"
HOLDERS_FOLDER = f"{OWN_FOLDER}/holders"
"""Who holds a lease: beside it, because earlier releases read a lease as one number."""
RENEW_SECONDS = 60.0
_RENEWED: dict[str, float] = {}
"""When this process last gave a sign of life, by run."""

LEASE_SECONDS = 24 * 3600.0
"""A run that has not finished a unit for so long is taken for dead."""
_THREADS = 16

_RUN = r"(?:[a-z]+-)?[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}"
_BESIDE = re.compile(
    r"_teachonce/(?:spec\.json|tokenizer/.+|runs/[^/]+\.json|rejects/[^/]+\.jsonl|commits/[0-9]{20}"
    r"|index/[0-9a-f]{1,32}-(?:[0-9a-f]{16}|[0-9a-f]{32})\.zst"
    rf"|(?:unscored|forgotten)/[0-9]+-[0-9a-f]{{32}}\.json|(?:leases|holders)/{_RUN})"
)
"""What stands under `_teachonce/`."""


def orphans(storage: Storage, base: Version | None) -> list[StoredFile]:
    """Shards under the root that no version up to `base` ever added, by name."""
    live = {shard.name for shard in base.shards} if base else set()
    strangers = [file for file in storage.files() if is_shard(file.name) and file.name not in live]
    if not strangers or base is None:
        return strangers
    known = added_names(read_entries(storage, base.number))
    return [file for file in strangers if file.name not in known]


def read_entries(storage: Storage, number: int) -> list[Entry]:
    """The log entries of all versions up to `number`, in order.

    Raises:
        CorruptionError: one is missing or damaged.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda n: read_entry(storage, n), range(NO_VERSION + 1, number + 1)))


def added_names(entries: Iterable[Entry]) -> set[str]:
    """Every shard that some version ever added."""
    return {name for entry in entries for name in entry.added}


def unreadable_versions(entries: Iterable[Entry], present: Iterable[str]) -> list[int]:
    """Versions that need a shard which is not among the files that are there."""
    there, missing, found = frozenset(present), set[str](), []
    for number, entry in enumerate(entries):
        missing.difference_update(entry.removed)
        missing.update(name for name in entry.added if name not in there)
        if missing:
            found.append(number)
    return found


def left_at(entries: Iterable[Entry]) -> dict[str, float]:
    """When each shard that was ever removed last left, in seconds since the epoch."""
    return {name: entry.record.time_ms / 1000 for entry in entries for name in entry.removed}


class Origin(NamedTuple):
    """The version, and the run, that a shard came with."""

    version: int
    run: str


def origins(entries: Sequence[Entry]) -> dict[str, Origin]:
    """Where each shard last came from."""
    return {
        name: Origin(number, entry.record.run) for number, entry in enumerate(entries) for name in entry.added
    }


def is_shard(name: str) -> bool:
    """Whether a file's name is one that a writer gives."""
    try:
        parse_name(name)
    except CorruptionError:
        return False
    return True


def is_ours(name: str) -> bool:
    """Whether a name is one that a writer gives: to a shard, to what stands beside it, or to an unfinished write."""
    part = PART.fullmatch(name)
    name = part["name"] if part else name
    return is_shard(name) or _BESIDE.fullmatch(name) is not None


def strangers(storage: Storage) -> list[str]:
    """What stands in a folder and bears no name of ours; of an object store, in its root. The log is Delta's own."""
    return [
        name for name in storage.everything() if not is_ours(name) and not name.startswith(f"{LOG_FOLDER}/")
    ]


def own_parts(storage: Storage) -> list[StoredFile]:
    """Parts of unfinished writes of ours."""
    return [file for file in storage.parts() if is_ours(file.name)]


def as_shard(file: StoredFile, examples: int) -> Shard:
    """A stored file as the log would have it."""
    return Shard(file.name, file.size_bytes, examples)


def new_run(verb: str = "") -> str:
    """A name for a run that begins now; that of a verb which is no precompute begins with it."""
    begun = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:8]}"
    return f"{verb}-{begun}" if verb else begun


def take_lease(storage: Storage, run: str) -> None:
    """Says that a run lives, and where; said again after each unit. While it does, `vacuum` leaves orphans alone.

    Raises:
        CacheError: a link stands where the run would write.
    """
    storage.check_links(OWN_FOLDER)
    holder = {"host": socket.gethostname(), "process": os.getpid()}
    storage.put(f"{HOLDERS_FOLDER}/{run}", json.dumps(holder).encode() + b"\n")
    _give_sign(storage, run)


def _give_sign(storage: Storage, run: str) -> None:
    storage.put(f"{LEASES_FOLDER}/{run}", f"{time.time():.0f}\n".encode())


def renew_lease(storage: Storage, run: str) -> None:
    """A sign of life, once a minute at most; one that a store refuses is left out."""
    now = time.monotonic()
    if now - _RENEWED.get(run, -RENEW_SECONDS) < RENEW_SECONDS:
        return
    _RENEWED[run] = now
    with contextlib.suppress(CacheError):
        _give_sign(storage, run)


def end_lease(storage: Storage, run: str) -> None:
    """Says that a run has ended."""
    storage.delete(lease_files(run))


@contextlib.contextmanager
def leased(storage: Storage, run: str) -> Iterator[None]:
    """A run lives while the block runs, however that ends: by its end, an error or a signal."""
    try:
        take_lease(storage, run)
        yield
    finally:
        with contextlib.suppress(CacheError):
            end_lease(storage, run)


def lease_files(run: str) -> list[str]:
    """The names under which a run says that it lives."""
    return [f"{LEASES_FOLDER}/{run}", f"{HOLDERS_FOLDER}/{run}"]


def living_runs(storage: Storage) -> list[str]:
    """Runs that have not ended, and gave a sign of life within `LEASE_SECONDS`."""
    return [run for run, at in _leases(storage) if time.time() - at < LEASE_SECONDS]


def dead_runs(storage: Storage) -> list[str]:
    """Runs that left a lease, and gave no sign of life for `LEASE_SECONDS`; of what bears no run's name, none."""
    leases = [(run, at) for run, at in _leases(storage) if re.fullmatch(_RUN, run)]
    return [run for run, at in leases if time.time() - at >= LEASE_SECONDS]


def told_of(storage: Storage, runs: Iterable[str]) -> str:
    """Runs for people: how old each is, and who holds it."""
    return "; ".join(f"{printable(run)} ({', '.join(_known_of(storage, run))})" for run in runs)


def _known_of(storage: Storage, run: str) -> Iterator[str]:
    with contextlib.suppress(ValueError):
        begun = time.strptime(run.rpartition("-")[0].rpartition("-")[2], "%Y%m%dT%H%M%SZ")
        yield f"begun {_ago(float(calendar.timegm(begun)))}"
    yield f"last sign of life {_ago(_signed(storage, f'{LEASES_FOLDER}/{run}'))}"
    try:
        holder = json.loads(storage.read(f"{HOLDERS_FOLDER}/{run}")[:1024])
        host, process = str(holder["host"]), int(holder["process"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return
    gone = ", which is gone" if host == socket.gethostname() and not _lives(process) else ""
    yield f"by process {process} on host {printable(host)}{gone}"


def _ago(at: float) -> str:
    minutes, seconds = divmod(max(0, int(time.time() - at)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min ago" if hours else f"{minutes} min {seconds} s ago"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _leases(storage: Storage) -> list[tuple[str, float]]:
    return [(name.rpartition("/")[2], _signed(storage, name)) for name in storage.names(LEASES_FOLDER)]


def _signed(storage: Storage, name: str) -> float:
    try:
        return float(storage.read(name))
    except (FileNotFoundError, ValueError):
        return 0.0
