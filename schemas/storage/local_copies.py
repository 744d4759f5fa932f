"""Ranges of shards that an object store gave, kept on a local disk: later epochs and later runs ask for none of them.

A shard's name holds the hash of its footer, and the footer those of its row groups. So a range of a shard never
changes, whichever store it comes from, and its copy is a file that is named by both: `SHARD.START-END`. Processes share
a folder without locks: a copy appears by a rename, and two that bear one name hold the same bytes.

Nothing kept is trusted. Readers check what they get by the seal, as if the store had given it; where that fails,
`read_again` asks the store anew, and replaces the copies. So nothing is synced: what a power failure leaves is found.

The limit: the least recently used copies go first. Cost: when it is reached the folder is listed, and a sixteenth of
the limit is freed at once. A process counts what it has added itself since it last listed, a thirty-second of the limit
at most: by so much for each process the folder may be too large for a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from schemas.errors import CorruptionError, SealedError, UsageError, advice, one_line
from schemas.printable import printable

if TYPE_CHECKING:
    from schemas.storage.storage import Storage

_log = logging.getLogger(__name__)
_COPY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}\.parquet\.[0-9]{1,19}-[0-9]{1,19}")
_PART = re.compile(_COPY.pattern + r"\.part-[0-9a-f]{8}")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PAUSES_SECONDS = (0.1, 1.0)
"""Before what was not right is asked for again."""
_PART_SECONDS = 3600
"""An unfinished write as old as that is nobody's."""

T = TypeVar("T")


class _Held(NamedTuple):
    """A copy in the folder; the one that was not used for longest sorts first."""

    used_ns: int
    name: str
    size_bytes: int


@dataclass
class _Count:
    """What this process knows of the folder."""

    lock: Any = field(default_factory=threading.Lock)
    total_bytes: int | None = None
    """When it was last listed, and what was added here since; None before."""
    added_bytes: int = 0
    gives_up: bool = False
    """Nothing more is kept."""


@dataclass(frozen=True, kw_only=True)
class LocalCopies:
    """A folder of copies, of at most `max_bytes` together. Safe to share between threads and between processes.

    What the disk refuses is one warning: from then on this process keeps no more, and still reads what is there.
    """

    folder: str
    max_bytes: int
    """Of all copies. A range that is larger is not kept."""
    looks: bool = True
    """Whether copies are read; else they are replaced."""
    _count: _Count = field(default_factory=_Count, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.folder or "://" in self.folder:
            raise UsageError("local copies lie in a folder of this machine", got=repr(self.folder))
        if self.max_bytes < 1:
            raise UsageError("local copies need room", got=f"{self.max_bytes} bytes")

    def afresh(self) -> LocalCopies:
        """The same folder, where every copy that is asked for is replaced by what the store has."""
        return replace(self, looks=False)

    def read(self, name: str, start: int, end: int, fetch: Callable[[], bytes]) -> bytes:
        """Bytes `start` to `end` of a shard: its copy, or what `fetch` gives, of which a copy is kept.

        Raises:
            Whatever `fetch` does. What the local disk refuses is never an error.
        """
        copy = f"{name}.{start}-{end}"
        if not _COPY.fullmatch(copy):
            return fetch()
        held = self._held(copy, end - start) if self.looks else None
        if held is not None:
            return held
        data = fetch()
        self._keep(copy, data)
        return data

    def _held(self, copy: str, size: int) -> bytes | None:
        """A copy that is whole as far as its size tells; it counts as used from now on."""
        path = Path(self.folder, copy)
        try:
            descriptor = os.open(path, _READ)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file, contextlib.suppress(OSError):
            found = os.fstat(descriptor)
            data = file.read() if stat.S_ISREG(found.st_mode) and found.st_size == size else b""
            if len(data) == size:
                with contextlib.suppress(OSError):
                    os.utime(descriptor)
                return data
        _log.warning(
            "a local copy is cut short or cannot be read, and is fetched anew: %s", printable(str(path))
        )
        return None

    def _keep(self, copy: str, data: bytes) -> None:
        count = self._count
        if count.gives_up or len(data) > self.max_bytes:
            return
        try:
            self._make_room(len(data))
            self._write(copy, data)
        except OSError as error:
            with count.lock:
                is_first, count.gives_up = not count.gives_up, True
            if is_first:
                told = f"{self.folder}: {one_line(error)}. {advice(error)}"
                _log.warning(
                    "no more local copies are kept, and the run goes on without: %s", printable(told)
                )

    def _write(self, copy: str, data: bytes) -> None:
        """Whole or not at all."""
        path = Path(self.folder, copy)
        part = path.with_name(f"{copy}.part-{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(part, _CREATE, 0o666), "wb") as file:
                file.write(data)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self, size: int) -> None:
        """Counts a copy that is about to be written, and lists the folder first where that may be too much."""
        count = self._count
        with count.lock:
            total, added = count.total_bytes, count.added_bytes + size
            if total is None or total + size > self.max_bytes or added > self.max_bytes // 32:
                total, added = self._evict(size), size
            count.total_bytes, count.added_bytes = total + size, added

    def _evict(self, size: int) -> int:
        """Deletes the least recently used copies until `size` bytes have room; bytes of those that stay."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        held = sorted(self._list())
        total = sum(copy.size_bytes for copy in held)
        if total + size <= self.max_bytes:
            return total
        most = min(self.max_bytes - size, self.max_bytes * 15 // 16)
        for copy in held:
            if total <= most:
                break
            Path(self.folder, copy.name).unlink(missing_ok=True)
            total -= copy.size_bytes
        return total

    def _list(self) -> Iterator[_Held]:
        """The copies. Whatever else stands in the folder is left alone; unfinished writes of old are deleted."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                # Another process deletes, too.
                with contextlib.suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if _COPY.fullmatch(entry.name) and stat.S_ISREG(found.st_mode):
                        yield _Held(found.st_mtime_ns, entry.name, found.st_size)
                    elif _PART.fullmatch(entry.name) and found.st_mtime < time.time() - _PART_SECONDS:
                        Path(entry.path).unlink()


def read_again(storage: Storage, read: Callable[[Storage], T]) -> T:
    """What `read` makes of an object store. Where that is not what was sealed, the store is asked again, and its answer
    replaces the local copies: a proxy, or a server among many, may have given another's bytes. A folder is read
    once, and so is what the seal vouched for.

    Raises:
        CorruptionError: it is not what was sealed at the last try either.
        SealedError: it is what was sealed, and that makes no sense.
    """
    if storage.is_local:
        return read(storage)
    fresh = storage if storage.copies is None else replace(storage, copies=storage.copies.afresh())
    try:
        return read(storage)
    except SealedError:
        raise
    except CorruptionError as error:
        first = error
    found = _tried(fresh, read)
    _log.warning("what was read was not what was sealed, and was fetched anew: %s", first.line())
    return found


def _tried(storage: Storage, read: Callable[[Storage], T]) -> T:
    first, last = _PAUSES_SECONDS
    time.sleep(first)
    try:
        return read(storage)
    except SealedError:
        raise
    except CorruptionError:
        time.sleep(last)
        return read(storage)
