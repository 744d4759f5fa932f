"""Versions: which shards are live. The cache is a Delta table, committed by `deltalake`.

One commit is one atomic change of the set of live shards. It carries `Transaction("teachonce", version)`, which makes
it idempotent (a retried commit finds its own) and exclusive (of two runs that began at one version the second is told
so), and a record with the number of live shards and rows and a hash over the live names *after* it: a flipped letter
in a log line would otherwise hide a shard.

Cost: 200,000 shards commit in about 1.3 s and open in 0.2 s. Log files are never cleaned up by a commit, so every
version opens until its shards are deleted on purpose.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from deltalake import (
    CommitProperties,
    PostCommitHookProperties,
    Schema,
    Transaction,
)
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from schemas.errors import CacheError, ConflictError, CorruptionError, NoCacheError, advice, one_line
from schemas.limits import parse_json, shown
from schemas.rows.columns import shard_schema
from schemas.shards.seal import Shard, Totals
from schemas.spec import Spec
from schemas.storage.storage import Storage
from schemas.versions.delta import (
    LOG_FOLDER,
    bear_witness,
    entry_name,
    live_rows,
    open_table,
    storage_options,
)
from schemas.versions.memory import memory_after
from schemas.versions.records import CommitRecord, index_in, record_hash
from schemas.versions.row_index import index_after

APP = "teachonce"
NO_VERSION = -1
"""The version of a cache in which nothing was committed yet."""

_KEEP_LOGS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)


class Version(NamedTuple):
    """One committed state."""

    number: int
    shards: tuple[Shard, ...]
    record: CommitRecord


class Entry(NamedTuple):
    """One version's log entry: its record, and the names that it adds and removes."""

    record: CommitRecord
    added: list[str]
    removed: list[str]


def names_hash(names: Iterable[str]) -> str:
    """Hash of a set of names, in hex."""
    return hashlib.blake2b("\n".join(sorted(names)).encode(), digest_size=16).hexdigest()


def latest_version(storage: Storage) -> int:
    """Number of the newest version; `NO_VERSION` where nothing was committed."""
    try:
        return open_table(storage).version()
    except NoCacheError:
        return NO_VERSION


def read_version(storage: Storage, number: int | None = None) -> Version:
    """A version's shards and record, checked against each other.

    Raises:
        NoCacheError: nothing was committed there, or no such version.
        CorruptionError: the log's live shards are not those that the commit counted.
    """
    table = open_table(storage, number)
    found = table.version()
    shards = tuple(sorted(Shard(*row) for row in live_rows(storage, table)))
    record = read_record(storage, found)
    _check_live(shards, record, f"{storage.root}, version {found}")
    return Version(found, shards, record)


def read_record(storage: Storage, number: int) -> CommitRecord:
    """The record inside one version's log entry.

    Raises:
        CorruptionError: there is no such entry, or none that teachonce wrote.
    """
    return read_entry(storage, number).record


def read_entry(storage: Storage, number: int) -> Entry:
    """One version's log entry; the names that it adds are checked against its record.

    Raises:
        CorruptionError: there is no such entry, or none that teachonce wrote.
    """
    name = entry_name(number)
    where = f"{storage.root}/{name}"
    try:
        lines = [parse_json(line) for line in storage.read(name).splitlines()]
        infos = [line["commitInfo"] for line in lines if "commitInfo" in line]
        text, stated = infos[0][APP]["record"], infos[0][APP]["hash"]
        record = replace(CommitRecord.from_json(parse_json(text)), index=index_in(infos[0][APP]))
        added = [line["add"]["path"] for line in lines if "add" in line]
        if [line["txn"]["version"] for line in lines if "txn" in line] != [number]:
            raise CorruptionError("a log entry is not that of its version", where=where)
        if stated != record_hash(text):
            raise CorruptionError("a commit's record does not match its own hash", where=where)
        if record.added_hash != names_hash(added):
            raise CorruptionError("a log entry does not add the shards that its commit did", where=where)
        removed = [line["remove"]["path"] for line in lines if "remove" in line]
        return Entry(record, added, removed)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CorruptionError(
            "a log entry is not what teachonce committed",
            where=where,
            got=shown(error),
            do="Restore _delta_log from a copy",
        ) from error


def commit(
    storage: Storage,
    spec: Spec,
    base: Version | None,
    added: Sequence[Shard],
    record: CommitRecord,
    *,
    removed: Sequence[Shard] = (),
    unremembered: Collection[str] = (),
    counts: Mapping[str, bytes] | None = None,
) -> int:
    """Adds and removes shards on top of the version that the run began with, and returns the new version's number.

    Doing it again with the same run id changes nothing and returns the same number. The record names each file of the
    cache's memory but those in `unremembered`, and an index of the live shards' row counts: those of new ones are
    told by `counts` (`counts_to_bytes`, by name), or read from their footers.

    Raises:
        ConflictError: another run committed since `base`.
        CacheError: the store refuses.
    """
    number = NO_VERSION + 1 if base is None else base.number + 1
    done = _committed_by(storage, number)
    if done is not None:
        return _own_or_conflict(storage, done, record.run, number)
    memory = memory_after(storage, base.record.memory if base else ())
    index = index_after(
        storage, spec, base.record.index if base else (), live_after(base, added, removed), counts or {}
    )
    record = replace(record, memory=tuple(name for name in memory if name not in unremembered), index=index)
    # One attempt: Delta's own retry would put the loser of two first commits on top of the winner, as version 1.
    properties = CommitProperties(
        custom_metadata={APP: record.to_log()},
        app_transactions=[Transaction(APP, number)],
        max_commit_retries=0,
    )
    try:
        actions: list[AddAction | RemoveAction] = [*map(_add, added), *map(_remove, removed)]
        _write(storage, spec, base, actions, properties)
    except (DeltaError, OSError) as error:
        done = _committed_by(storage, number)
        if done is not None:
            return _own_or_conflict(storage, done, record.run, number)
        raise CacheError(
            "the commit failed", where=storage.root, got=one_line(error), do=advice(error)
        ) from error
    storage.make_durable(entry_name(number))
    bear_witness(storage, number)
    return number


def record_after(
    base: Version | None,
    added: Sequence[Shard],
    change: Totals,
    removed: Sequence[Shard] = (),
    **fields: Any,
) -> CommitRecord:
    """The record of a commit that adds shards to `base` and removes some; `change` is what the totals gain."""
    live = live_after(base, added, removed)
    return CommitRecord(
        live_shards=len(live),
        live_rows=sum(shard.examples for shard in live),
        live_hash=names_hash(shard.name for shard in live),
        added_hash=names_hash(shard.name for shard in added),
        totals=(base.record.totals if base else Totals()) + change,
        time_ms=int(time.time() * 1000),
        **fields,
    )


def live_after(base: Version | None, added: Sequence[Shard], removed: Sequence[Shard]) -> list[Shard]:
    """The live shards of a version that adds some to `base` and removes some."""
    gone = set(removed)
    return [*(shard for shard in (base.shards if base else ()) if shard not in gone), *added]


def _write(
    storage: Storage,
    spec: Spec,
    base: Version | None,
    actions: Sequence[AddAction | RemoveAction],
    properties: CommitProperties,
) -> None:
    schema = Schema.from_arrow(shard_schema(spec))
    storage.check_links(LOG_FOLDER)
    if base is None:
        create_table_with_add_actions(
            storage.root,
            schema,
            [action for action in actions if isinstance(action, AddAction)],
            mode="error",
            storage_options=storage_options(),
            commit_properties=properties,
            post_commithook_properties=_KEEP_LOGS,
        )
        return
    open_table(storage, base.number).create_write_transaction(
        list(actions),
        "append",
        schema,
        commit_properties=properties,
        post_commithook_properties=_KEEP_LOGS,
    )


def _committed_by(storage: Storage, number: int) -> int | None:
    """The newest version if it is `number` or later."""
    latest = latest_version(storage)
    return latest if latest >= number else None


def _own_or_conflict(storage: Storage, latest: int, run: str, number: int) -> int:
    if read_record(storage, number).run == run:
        storage.make_durable(entry_name(number))
        bear_witness(storage, number)
        return number
    raise ConflictError(
        "the cache has moved on since this run began",
        where=storage.root,
        expected=f"version {number - 1}",
        got=f"version {latest}",
        do="Start the run again: it computes only what is still missing",
    )


def _add(shard: Shard) -> AddAction:
    stats = json.dumps({"numRecords": shard.examples})
    now = int(time.time() * 1000)
    return AddAction(shard.name, shard.size_bytes, {}, now, True, stats)


def _remove(shard: Shard) -> RemoveAction:
    return RemoveAction(shard.name, True, int(time.time() * 1000), size=shard.size_bytes)


def _check_live(shards: Sequence[Shard], record: CommitRecord, where: str) -> None:
    got = (len(shards), sum(s.examples for s in shards), names_hash(s.name for s in shards))
    expected = (record.live_shards, record.live_rows, record.live_hash)
    if got != expected:
        raise CorruptionError(
            "the log's live shards are not those that the commit counted",
            where=where,
            expected=f"{expected[0]} shards, {expected[1]} rows",
            got=f"{got[0]} shards, {got[1]} rows",
            do="Restore _delta_log from a copy",
        )


def base_version(storage: Storage) -> Version | None:
    """The newest version, for a run to build on; None where nothing was committed."""
    return None if latest_version(storage) < 0 else read_version(storage)
