"""What is missing in an old version was deleted on purpose: that is no damage, and told as what it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from schemas.errors import CorruptionError, NoCacheError
from schemas.storage.storage import Storage
from schemas.versions.commits import latest_version, read_version


@contextlib.contextmanager
def told_if_gone(storage: Storage, version: int, name: str) -> Iterator[None]:
    """Damage of a shard of a version, unless the shard was deleted on purpose.

    Raises:
        NoCacheError: it was.
    """
    try:
        yield
    except CorruptionError as error:
        if found := given_up(storage, version, name):
            raise found from error
        raise


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
