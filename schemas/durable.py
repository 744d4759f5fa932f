"""Folders and files of a local disk that outlive a power failure."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from schemas.errors import CacheError, CorruptionError


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each durable in its parent."""
    if folder.is_dir():
        return
    if folder.exists():
        raise CacheError(
            "a file stands where the cache needs a folder", where=folder, do="Choose another path"
        )
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def plain_file(path: Path) -> Path:
    """The same path, of which a plain file has been found: a pipe would be waited for without end.

    Raises:
        CorruptionError: something else stands there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise CorruptionError("this is no plain file", where=path, do="Remove it")
    return path


def sync(path: Path) -> None:
    """Syncs a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
