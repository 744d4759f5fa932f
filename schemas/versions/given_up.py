"""What is missing in an old version was deleted on purpose: that is no damage, and told as what it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from schemas.errors import REPAIR, CacheError, CorruptionError, NoCacheError
from schemas.storage.storage import Storage
from schemas.versions.commits import latest_version, read_version


@contextlib.contextmanager
def told_if_gone(storage: Storage, version: int, name: str, place: int | None = None) -> Iterator[None]:
    """Errors about a shard of a version, with the row group that is read and what to do, unless the shard was deleted
    on purpose.

    Raises:
        NoCacheError: it was.
        CacheError: as it was raised, naming the place.
    """
    try:
        yield
    except NoCacheError:
        raise
    except CacheError as error:
        found = None
        with contextlib.suppress(CacheError):  # a store that fails now does not hide what was found before
            found = given_up(storage, version, name) if isinstance(error, CorruptionError) else None
        if found is not None:
            raise found from error
        raise _placed(error, f"{storage.root}/{name}", place) from error


def _placed(error: CacheError, shard: str, place: int | None) -> CacheError:
    where = error.where
    if place is not None and where in (None, shard):
        where = f"{shard}, row group {place}"
    do = error.do or (REPAIR if isinstance(error, CorruptionError) else None)
    return type(error)(error.what, where=where, expected=error.expected, got=error.got, do=do)


def given_up(storage: Storage, version: int, name: str) -> NoCacheError | None:
    """The error to raise when a shard is missing that the newest version does not need either."""
    if storage.exists(name) or latest_version(storage) <= version:
        return None
    newest = read_version(storage)
    if name in {live.name for live in newest.shards}:
        return None
    return NoCacheError(
        f"version {version} can no longer be read: shards of it were deleted, by `vacuum` or `forget`",
        where=f"{storage.root}/{name}",
        do=f"Open the newest version, {newest.number}",
    )
