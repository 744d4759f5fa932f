"""`--local_cache`: where `train` and `evaluate` keep what they read of a cache in an object store."""

from __future__ import annotations

import math
from collections.abc import Collection

from schemas.errors import UsageError
from schemas.storage.local_copies import LocalCopies

GB_DEFAULT = 50.0
HELP = "A folder that keeps what is read of a cache at s3://, gs:// or az://; several runs may share it."
GB_HELP = "Most of that, in 10^9 bytes."


def check_flags(folder: str | None, gigabytes: float, caches: Collection[str]) -> None:
    """Refuses flags without effect, and a limit that is none.

    Raises:
        UsageError: naming the flag.
    """
    if not 1e-9 <= gigabytes < math.inf:
        raise UsageError("--local_cache_gb must be a number above 0", got=gigabytes)
    if folder is None:
        if gigabytes != GB_DEFAULT:
            raise UsageError("--local_cache_gb has no effect without --local_cache", got=gigabytes)
        return
    if not folder or "://" in folder:
        raise UsageError("--local_cache is a folder of this machine", got=repr(folder))
    if not any("://" in cache and not cache.startswith("file:") for cache in caches):
        raise UsageError("--local_cache has no effect on a cache in a folder", got=", ".join(caches))


def local_copies(folder: str | None, gigabytes: float) -> LocalCopies | None:
    """Where a cache's reader keeps what it fetched; None where no folder was named."""
    return None if folder is None else LocalCopies(folder=folder, max_bytes=int(gigabytes * 1e9))
