"""A cache's folder on a local disk: nothing in it is followed, and nothing opened that is no plain file.

The folder itself may be reached by links: that is the user's own path. Below it each folder is opened from the one
above without following (`openat`, `O_NOFOLLOW`), so that a link which is put there between a look and a use leads
nowhere either. A link, a pipe or a device in the place of a file is one error, before it is opened.

What is written appears whole or not at all: temporary name, fsync, link or rename, fsync of the folder. Cost: an open
for each folder on the way.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from schemas.errors import CacheError, CorruptionError, UsageError
from schemas.storage.durable import make_folder

PART = re.compile(r"(?P<name>.+)\.part-[0-9a-f]{8}")
"""A name that an unfinished write has, and the one that it was to get."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def root_of(text: str) -> str:
    """A cache's folder as an absolute path.

    Raises:
        UsageError: its name is no UTF-8, or one that Delta misreads.
    """
    path = str(Path(text).absolute())
    if "\0" in path or any("\ud800" <= char <= "\udfff" for char in path):
        raise UsageError("a cache's path is no UTF-8 text", where=path, do="Choose another folder")
    if unquote(path) != path:
        raise UsageError(
            "a cache's path cannot hold a percent escape: Delta would look elsewhere",
            where=path,
            do="Choose another folder",
        )
    return path


def parts_of(name: str) -> list[str]:
    """The components of a name.

    Raises:
        CorruptionError: it leads out of the cache.
    """
    parts = name.split("/") if name else []
    if {"", ".", ".."} & {*parts} or "\0" in name:
        raise CorruptionError("a name leads out of the cache", where=repr(name))
    return parts


@contextlib.contextmanager
def opened(root: str, name: str) -> Iterator[int]:
    """The descriptor of a file, for reading."""
    *folders, leaf = parts_of(name)
    with _folder(root, folders) as folder:
        _plain(folder, leaf, f"{root}/{name}")
        descriptor = os.open(leaf, _READ, dir_fd=folder)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def read(root: str, name: str) -> bytes:
    """A whole file."""
    with opened(root, name) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as file:
        return file.read()


def size(root: str, name: str) -> int:
    """A file's bytes, without opening it."""
    *folders, leaf = parts_of(name)
    with _folder(root, folders) as folder:
        return _plain(folder, leaf, f"{root}/{name}").st_size


def write(root: str, name: str, data: bytes | memoryview, *, replace: bool) -> bool:
    """Writes a file whole and durably; whether it did, where what is there may not be replaced."""
    make_folder(Path(root))
    *folders, leaf = parts_of(name)
    with _folder(root, folders, make=True) as folder:
        with contextlib.suppress(FileNotFoundError):
            _plain(folder, leaf, f"{root}/{name}")
        part = f"{leaf}.part-{secrets.token_hex(4)}"
        descriptor = os.open(part, _CREATE, 0o666, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            if not _appears(part, leaf, folder, replace=replace):
                return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
        os.fsync(folder)
    return True


def _appears(part: str, leaf: str, folder: int, *, replace: bool) -> bool:
    if replace:
        os.rename(part, leaf, src_dir_fd=folder, dst_dir_fd=folder)
        return True
    try:
        os.link(part, leaf, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def make_durable(root: str, name: str) -> None:
    """Syncs a file that something else wrote, and its folder."""
    *folders, leaf = parts_of(name)
    with _folder(root, folders) as folder:
        _plain(folder, leaf, f"{root}/{name}")
        descriptor = os.open(leaf, _READ, dir_fd=folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.fsync(folder)


def delete(root: str, names: Iterable[str]) -> None:
    """Deletes files, durably; those that are not there are passed over."""
    by_folder: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        *folders, leaf = parts_of(name)
        by_folder.setdefault(tuple(folders), []).append(leaf)
    for above, leaves in by_folder.items():
        with contextlib.suppress(FileNotFoundError), _folder(root, above) as folder:
            for leaf in leaves:
                with contextlib.suppress(FileNotFoundError):
                    _plain(folder, leaf, "/".join([root, *above, leaf]))
                    os.unlink(leaf, dir_fd=folder)
            os.fsync(folder)


def walk(root: str, prefix: str = "", *, deep: bool = True) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All under a folder that is none itself, by name: files, and links and the like, which nothing follows."""
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        _folder(root, parts_of(prefix)) as folder,
    ):
        yield from _walk(folder, f"{prefix}/" if prefix else "", deep=deep)


def _walk(folder: int, prefix: str, *, deep: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield prefix + entry.name, entry
            elif deep:
                # What vanishes or is replaced since it was listed is passed over.
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    inner = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                    try:
                        yield from _walk(inner, f"{prefix}{entry.name}/", deep=True)
                    finally:
                        os.close(inner)


def refuse_stranger(mode: int, where: str) -> None:
    """Refuses what is no plain file, by its mode.

    Raises:
        CacheError: it is a link, which may be right where it leads, and is not looked at.
        CorruptionError: it is a folder, a pipe or a device.
    """
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFREG:
        return
    what = f"{_KINDS.get(kind, 'a device')} stands where the cache has a file"
    if kind == stat.S_IFLNK:
        raise _link(where)
    raise CorruptionError(what, where=where, do="Restore the file from a copy, or remove what stands there")


def _link(where: str) -> CacheError:
    return CacheError(
        "a symbolic link stands in the cache, and none is followed there",
        where=where,
        do="Remove it, or put what it leads to in its place: `cp -rL` copies a folder so",
    )


def _plain(folder: int, leaf: str, where: str) -> os.stat_result:
    """What the system says of a file; anything else is refused."""
    found = os.stat(leaf, dir_fd=folder, follow_symlinks=False)
    refuse_stranger(found.st_mode, where)
    return found


@contextlib.contextmanager
def _folder(root: str, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
    """The descriptor of a folder below the root."""
    descriptor = os.open(root, _FOLDER)
    try:
        for place, part in enumerate(parts):
            inner = _enter(descriptor, part, "/".join([root, *parts[: place + 1]]), make=make)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(folder: int, part: str, where: str, *, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, dir_fd=folder)
            os.fsync(folder)
    try:
        return os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        mode = os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            raise _link(where) from None
        if make and not stat.S_ISDIR(mode):
            raise CacheError(
                "a file stands where the cache needs a folder", where=where, do="Choose another path"
            ) from None
        raise
