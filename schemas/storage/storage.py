"""All of a cache's bytes go through here: a folder, `s3://`, `gs://` or `az://`, by way of `obstore`.

An object appears whole or not at all. On object stores one put of finished bytes does it. On a local disk obstore
renames but does not sync, and it follows links: all is our own there, in `schemas/storage/local_files.py`.
Credentials and endpoints come from the environment, by the names that each cloud's tools use (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...), for obstore and Delta alike.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

from schemas.errors import CacheError, CorruptionError, UsageError, advice, one_line
from schemas.storage import local_files
from schemas.storage.endpoints import plain_http_endpoint
from schemas.storage.local_copies import LocalCopies

SHARD_SUFFIX = ".parquet"
_OTHER_RANGE = re.compile("NotPartial|UnexpectedRange")
"""How the client tells an answer that is not the range that was asked for."""


class StoredFile(NamedTuple):
    """One object, its size and when it was written (seconds since the epoch, by the store's clock)."""

    name: str
    size_bytes: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The objects under one root. Names are relative, with `/`."""

    root: str
    """An absolute local path, or a URL without a trailing slash."""
    store: ObjectStore | None
    """None for a local folder, which is read and written directly."""
    copies: LocalCopies | None = None
    """Where ranges of an object store's shards are kept and looked for; whoever reads them checks them by the seal."""

    @classmethod
    def at(cls, root: str | os.PathLike[str], copies: LocalCopies | None = None) -> Storage:
        """Opens a root; nothing is created and nothing is read.

        Raises:
            UsageError: the URL's scheme or form is not one that obstore knows; a folder's name is one that
                Delta misreads; or copies of a folder's files were asked for.
        """
        text = os.fspath(root)
        try:
            scheme = urlsplit(text).scheme if "://" in text else ""
            if scheme in ("", "file"):
                if copies is not None:
                    raise UsageError("local copies have no effect on a cache in a folder", got=text)
                return cls(
                    root=local_files.root_of(unquote(urlsplit(text).path) if scheme else text), store=None
                )
            # Plain HTTP where the user's own endpoint is plain HTTP (MinIO and emulators on one host).
            store = from_url(text, client_options={"allow_http": plain_http_endpoint()})
            return cls(root=text.rstrip("/"), store=store, copies=copies)
        except (BaseError, ValueError) as error:
            raise UsageError(
                "this is no place for a cache",
                where=text,
                expected="a folder, s3://, gs:// or az://",
                got=one_line(error),
            ) from error

    @property
    def is_local(self) -> bool:
        return self.root.startswith("/")

    @property
    def _remote(self) -> ObjectStore:
        assert self.store is not None, self.root
        return self.store

    def read(self, name: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        with self._told(name):
            if self.is_local:
                return local_files.read(self.root, name)
            return bytes(obstore.get(self._remote, name).bytes())

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive) of an object.

        Raises:
            FileNotFoundError: there is none of that name.
            CorruptionError: it is shorter than that, or the store answers with something else.
        """
        if self.copies is None:
            return self._range(name, start, end)
        return self.copies.read(name, start, end, lambda: self._range(name, start, end))

    def _range(self, name: str, start: int, end: int) -> bytes:
        with self._told(name):
            if self.is_local:
                with local_files.opened(self.root, name) as descriptor:
                    data = os.pread(descriptor, end - start, start)
            else:
                data = self._range_remote(name, start, end)
        if len(data) != end - start:
            raise self._other_size(name, end, start + len(data) if data else self.size(name), data)
        return data

    def _range_remote(self, name: str, start: int, end: int) -> bytes:
        """Stores refuse a range that begins behind the end, each in its own words: that is damage, and no outage."""
        try:
            return bytes(obstore.get_range(self._remote, name, start=start, end=end))
        except (NotFoundError, FileNotFoundError):
            raise
        except (OSError, BaseError) as error:
            size = int(obstore.head(self._remote, name)["size"])
            if size < end:
                raise self._other_size(name, end, size) from None
            if not _OTHER_RANGE.search(str(error)):
                raise
            raise CorruptionError(
                "the store answers with other bytes than were asked for",
                where=f"{self.root}/{name}",
                expected=f"bytes {start} to {end}",
                got=one_line(error),
                do="Look at what stands between here and the store (a proxy, a page to sign in)",
            ) from None

    def _other_size(self, name: str, expected: int, got: int, data: bytes | None = None) -> CorruptionError:
        what, found = "a file is shorter than what was written", f"{got}"
        if got >= expected:  # an empty answer does not tell how large the file is
            more = "the store gives more than was asked for"
            what, found = (more, found) if data else ("the store gives nothing", f"none, of a file of {got}")
        where = f"{self.root}/{name}"
        return CorruptionError(what, where=where, expected=f"{expected} bytes", got=found)

    def size(self, name: str) -> int:
        """Bytes of an object.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        with self._told(name):
            if self.is_local:
                return local_files.size(self.root, name)
            return int(obstore.head(self._remote, name)["size"])

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Writes an object whole and durably; one of that name is replaced."""
        with self._told(name, writing=True):
            if self.is_local:
                local_files.write(self.root, name, data, replace=True)
            else:
                obstore.put(self._remote, name, data)

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        """Writes an object whole and durably unless there is one of that name; whether it was written."""
        try:
            with self._told(name, writing=True):
                if self.is_local:
                    return local_files.write(self.root, name, data, replace=False)
                obstore.put(self._remote, name, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def make_durable(self, name: str) -> None:
        """Makes sure that an object which something else wrote outlives a power failure."""
        if self.is_local:
            with self._told(name):
                local_files.make_durable(self.root, name)

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """Names under a folder (or the root), sorted; parts of unfinished writes are left out.

        Raises:
            CacheError: a link stands there, or what is no file.
        """
        with self._told(prefix):
            if self.is_local:
                found = list(self._names_local(prefix))
            else:
                pages = obstore.list(self._remote, prefix or None)
                found = [item["path"] for page in pages for item in page]
        return sorted(name for name in found if not local_files.PART.fullmatch(name))

    def check_links(self, prefix: str) -> None:
        """Looks for links under a folder that something else is about to read, or to write into.

        Raises:
            CacheError: a link stands there, or what is no file.
        """
        if self.is_local:
            self.names(prefix)

    def files(self) -> list[StoredFile]:
        """The objects directly under the root, and parts of unfinished writes there, sorted by name.

        Raises:
            CacheError: a link stands there under the name of a file of ours, or what is no file.
        """
        with self._told(""):
            if self.is_local:
                found = list(self._files_local(deep=False))
            else:
                items = obstore.list_with_delimiter(self._remote)["objects"]
                found = [StoredFile(i["path"], i["size"], i["last_modified"].timestamp()) for i in items]
        return sorted(found)

    def everything(self) -> list[str]:
        """Names of all that is no folder, whatever it is; of an object store's, those under the root."""
        if not self.is_local:
            return [file.name for file in self.files()]
        with self._told(""):
            return sorted(name for name, _ in local_files.walk(self.root))

    def parts(self) -> list[StoredFile]:
        """Parts of unfinished writes, wherever they stand; object stores have none."""
        with self._told(""):
            files = self._files_local(deep=True) if self.is_local else ()
            return sorted(file for file in files if local_files.PART.fullmatch(file.name))

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects for good; those that are not there are passed over."""
        with contextlib.suppress(FileNotFoundError), self._told(names[0] if names else ""):
            if not self.is_local:
                self._delete_remote(list(names))
                return
            local_files.delete(self.root, names)

    def _delete_remote(self, names: list[str]) -> None:
        """Some stores say of one object that it is not there, and leave the rest."""
        try:
            obstore.delete(self._remote, names)
        except (NotFoundError, FileNotFoundError):
            for name in names:
                with contextlib.suppress(NotFoundError, FileNotFoundError):
                    obstore.delete(self._remote, name)

    def _names_local(self, prefix: str) -> Iterator[str]:
        """Names in a folder of ours, where nothing but files may stand; nothing is asked of each file."""
        for name, entry in local_files.walk(self.root, prefix):
            if not entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    local_files.refuse_stranger(
                        entry.stat(follow_symlinks=False).st_mode, f"{self.root}/{name}"
                    )
            yield name

    def _files_local(self, *, deep: bool) -> Iterator[StoredFile]:
        """Files, wherever they stand. What is none is refused under a shard's name, and else left alone."""
        for name, entry in local_files.walk(self.root, deep=deep):
            # Another's parts come and go.
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if name.endswith(SHARD_SUFFIX) and "/" not in name:
                    local_files.refuse_stranger(found.st_mode, f"{self.root}/{name}")
                if entry.is_file(follow_symlinks=False):
                    yield StoredFile(name, found.st_size, found.st_mtime)

    @contextlib.contextmanager
    def _told(self, name: str, *, writing: bool = False) -> Iterator[None]:
        """Errors of the store, with the place they are about."""
        try:
            yield
        except (CacheError, AlreadyExistsError):
            raise
        except (NotFoundError, FileNotFoundError, NotADirectoryError) as error:
            if writing:
                raise self._refuses(name, error) from error
            raise FileNotFoundError(f"{self.root}/{name}") from error
        except (OSError, BaseError) as error:
            raise self._refuses(name, error) from error

    def _refuses(self, name: str, error: Exception) -> CacheError:
        where = f"{self.root}/{name}"
        return CacheError("the cache's storage refuses", where=where, got=one_line(error), do=advice(error))
