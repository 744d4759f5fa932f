"""Opening a cache's Delta table, with whatever `deltalake` raises told as errors of ours."""

from __future__ import annotations

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from schemas.errors import CacheError, CorruptionError, NoCacheError, one_line
from schemas.storage import Storage, plain_http_endpoint


def open_table(storage: Storage, number: int | None = None) -> DeltaTable:
    """The table at a version, by default the newest.

    Raises:
        NoCacheError: nothing was committed there, or no such version.
        CorruptionError: the log is damaged.
        CacheError: the store refuses.
    """
    if number is not None and number < 0:
        raise _no_such_version(storage, number)
    try:
        return DeltaTable(storage.root, version=number, storage_options=storage_options())
    except TableNotFoundError as error:
        raise NoCacheError(
            "no cache is there: nothing was committed",
            where=storage.root,
            do="Check the path, or make one with `teachonce precompute`",
        ) from error
    except DeltaError as error:
        if number is not None and open_table(storage).version() < number:
            raise _no_such_version(storage, number) from error
        where = f"{storage.root}/_delta_log"
        raise CorruptionError("the cache's log cannot be read", where=where, got=one_line(error)) from error
    except OSError as error:
        raise CacheError(
            "the cache's log cannot be reached",
            where=f"{storage.root}/_delta_log",
            got=one_line(error),
            do="Check the path, its permissions and credentials",
        ) from error


def storage_options() -> dict[str, str]:
    """What `deltalake` is told beyond the environment."""
    return {"allow_http": "true"} if plain_http_endpoint() else {}


def _no_such_version(storage: Storage, number: int) -> NoCacheError:
    latest = open_table(storage).version()
    return NoCacheError(
        "the cache has no such version", where=storage.root, expected=f"0 to {latest}", got=number
    )
