"""Folders and files of a local disk that outlive a power failure."""

from __future__ import annotations

import os
from pathlib import Path

from schemas.errors import CacheError


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, each durable in its parent."""
    if folder.is_dir():
        return
    if os.path.lexists(folder):
        what = "a link that leads nowhere" if folder.is_symlink() else "a file"
        raise CacheError(
            f"{what} stands where the cache needs a folder", where=folder, do="Choose another path"
        )
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Syncs a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
