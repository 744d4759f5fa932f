"""Opening a cache's Delta table, with whatever `deltalake` raises told as errors of ours.

A log that has lost its newest entry is the log of the version before: nothing in it tells of the loss. So each commit
leaves a *witness* beside the log, an empty file named by its version, and the newest version is only taken for it where
there is no witness of a later one. Cost: one look at a name whenever the newest version is opened.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from schemas.errors import CacheError, CorruptionError, NoCacheError, advice, one_line
from schemas.limits import MAX_COUNT, told
from schemas.shards.parquet_limits import check_file
from schemas.shards.seal import parse_name
from schemas.storage.endpoints import plain_http_endpoint
from schemas.storage.storage import Storage

LOG_FOLDER = "_delta_log"
WITNESS_FOLDER = "_teachonce/commits"
_SHARD_COLUMNS = ("path", "size_bytes", "num_records")
_LOG_FILES = (".json", ".parquet", ".crc", "_last_checkpoint")
_RESTORE = "Restore _delta_log from a copy"
_PANIC = "PanicException"
"""What a panic in Rust becomes, for instance on a damaged checkpoint: no `Exception`, and of no public class."""


def open_table(storage: Storage, number: int | None = None) -> DeltaTable:
    """The table at a version, by default the newest.

    Raises:
        NoCacheError: nothing was committed there, or no such version.
        CorruptionError: the log is damaged, or has lost its newest entry.
        CacheError: the store refuses.
    """
    if number is not None and number < 0:
        raise _no_such_version(storage, number)
    storage.check_links(LOG_FOLDER)  # `deltalake` follows them
    refuse_odd_files(storage)
    try:
        with log_errors(storage):
            table = DeltaTable(storage.root, version=number, storage_options=storage_options())
    except TableNotFoundError as error:
        _refuse_lost_entry(storage, 0)
        raise NoCacheError(
            "no cache is there: nothing was committed",
            where=storage.root,
            do="Check the path, or make one with `teachonce precompute`",
        ) from error
    except CorruptionError as error:
        if number is not None and open_table(storage).version() < number:
            raise _no_such_version(storage, number) from error
        raise
    if number is None:
        _refuse_lost_entry(storage, table.version() + 1)
    return table


def live_rows(storage: Storage, table: DeltaTable) -> list[tuple[str, int, int]]:
    """Name, bytes and rows of each live shard, as the log has them.

    Raises:
        CorruptionError: the log is damaged, names what is no shard, or counts no rows.
    """
    with log_errors(storage):
        actions = table.get_add_actions(flatten=True)
    with told("the cache's log cannot be read", f"{storage.root}/_delta_log"):
        rows = _rows_of(actions)
    for row in rows:
        parse_name(str(row[0]))
        if len(row) < len(_SHARD_COLUMNS) or not all(type(n) is int and 0 < n < MAX_COUNT for n in row[1:]):
            where = f"{storage.root}, version {table.version()}, {row[0]}"
            raise CorruptionError("a log entry counts no rows", where=where)
    return rows


def _rows_of(actions: Any) -> list[Any]:
    known = [actions[name].to_pylist() for name in _SHARD_COLUMNS if name in actions.schema.names]
    return list(zip(*known, strict=True))


def refuse_odd_files(storage: Storage) -> None:
    """On a disk a log holds plain files, and checkpoints that are no larger than they look.

    Delta would wait for a pipe without end, and a checkpoint of some bytes may claim to be gigabytes.

    Raises:
        CorruptionError: naming what is none.
    """
    if not storage.is_local:
        return
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(_log_of(storage)) as log:
        for entry in log:
            if not entry.name.endswith(_LOG_FILES):
                continue
            if not entry.is_file():
                raise CorruptionError("the log holds what is no plain file", where=entry.path, do=_RESTORE)
            if entry.name.endswith(".parquet"):
                found = entry.stat()
                _check_checkpoint(entry.path, found.st_size, found.st_mtime_ns)


def _log_of(storage: Storage) -> str:
    return f"{storage.root}/_delta_log"


@functools.lru_cache(maxsize=1024)
def _check_checkpoint(path: str, size: int, modified: int) -> None:
    """Once for each file in the state in which it is."""
    del size, modified
    check_file(Path(path).read_bytes(), path)


@contextlib.contextmanager
def log_errors(storage: Storage) -> Iterator[None]:
    """What `deltalake` raises while it reads a log, as errors of ours; but that there is no table stays as it is."""
    where = f"{storage.root}/{LOG_FOLDER}"
    try:
        yield
    except TableNotFoundError:
        raise
    except OSError as error:
        raise CacheError(
            "the cache's log cannot be reached",
            where=where,
            got=one_line(error),
            do=advice(error),
        ) from error
    except BaseException as error:
        if isinstance(error, DeltaError) or type(error).__name__ == _PANIC:
            raise CorruptionError(
                "the cache's log cannot be read", where=where, got=one_line(error)
            ) from error
        raise


def entry_name(number: int) -> str:
    """Where a version's log entry stands."""
    return f"{LOG_FOLDER}/{number:020d}.json"


def bear_witness(storage: Storage, number: int) -> None:
    """Says beside the log that a version was committed.

    A refusal is passed over: the version is committed, and without its witness only the loss of that entry is not seen.
    """
    with contextlib.suppress(CacheError):
        storage.put_if_absent(_witness_name(number), b"")


def storage_options() -> dict[str, str]:
    """What `deltalake` is told beyond the environment."""
    return {"allow_http": "true"} if plain_http_endpoint() else {}


def _refuse_lost_entry(storage: Storage, following: int) -> None:
    """The entry is looked for too: another run may have committed since the log was read."""
    if storage.exists(_witness_name(following)) and not storage.exists(entry_name(following)):
        raise CorruptionError(
            "the log has lost its newest entries",
            where=f"{storage.root}/{entry_name(following)}",
            do=_RESTORE,
        )


def _witness_name(number: int) -> str:
    return f"{WITNESS_FOLDER}/{number:020d}"


def _no_such_version(storage: Storage, number: int) -> NoCacheError:
    latest = open_table(storage).version()
    return NoCacheError(
        "the cache has no such version", where=storage.root, expected=f"0 to {latest}", got=number
    )
