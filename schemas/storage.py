"""All of a cache's bytes go through here: a folder, `s3://`, `gs://` or `az://`, by way of `obstore`.

An object appears whole or not at all. On object stores one put of finished bytes does it. On a local disk obstore
renames but does not sync, so puts are our own there: temporary name, fsync, link or rename, fsync of the folder.
Credentials and endpoints come from the environment, by the names that each cloud's tools use (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...), for obstore and Delta alike.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig

from schemas.durable import make_folder, plain_file, sync
from schemas.errors import CacheError, CorruptionError, UsageError, one_line

_PART = ".part-"
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT")
"""Where the environment names a store other than the cloud's own."""


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

    @classmethod
    def at(cls, root: str | os.PathLike[str]) -> Storage:
        """Opens a root; nothing is created and nothing is read.

        Raises:
            UsageError: the URL's scheme or form is not one that obstore knows, or a folder's name is one that
                Delta misreads.
        """
        text = os.fspath(root)
        scheme = urlsplit(text).scheme if "://" in text else ""
        if scheme in ("", "file"):
            return cls(root=_local_root(unquote(urlsplit(text).path) if scheme else text), store=None)
        try:
            return cls(root=text.rstrip("/"), store=from_url(text, client_options=_client_options()))
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
                return plain_file(self._path(name)).read_bytes()
            return bytes(obstore.get(self._remote, name).bytes())

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` (exclusive) of an object.

        Raises:
            FileNotFoundError: there is none of that name.
            CorruptionError: it is shorter than that.
        """
        with self._told(name):
            if self.is_local:
                with plain_file(self._path(name)).open("rb") as file:
                    data = os.pread(file.fileno(), end - start, start)
            else:
                data = self._range_remote(name, start, end)
        if len(data) != end - start:
            raise self._shorter(name, end, start + len(data) if data else self.size(name))
        return data

    def _range_remote(self, name: str, start: int, end: int) -> bytes:
        """Stores refuse a range that begins behind the end, each in its own words: that is damage, and no outage."""
        try:
            return bytes(obstore.get_range(self._remote, name, start=start, end=end))
        except (NotFoundError, FileNotFoundError):
            raise
        except (OSError, BaseError):
            size = int(obstore.head(self._remote, name)["size"])
            if size >= end:
                raise
            raise self._shorter(name, end, size) from None

    def _shorter(self, name: str, expected: int, got: int) -> CorruptionError:
        return CorruptionError(
            "a file is shorter than what was written",
            where=f"{self.root}/{name}",
            expected=f"{expected} bytes",
            got=f"{got}",
        )

    def size(self, name: str) -> int:
        """Bytes of an object.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        with self._told(name):
            if self.is_local:
                return plain_file(self._path(name)).stat().st_size
            return int(obstore.head(self._remote, name)["size"])

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Writes an object whole and durably; one of that name is replaced."""
        with self._told(name):
            if self.is_local:
                self._put_local(name, data, replace=True)
            else:
                obstore.put(self._remote, name, data)

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        """Writes an object whole and durably unless there is one of that name; whether it was written."""
        try:
            with self._told(name):
                if self.is_local:
                    self._put_local(name, data, replace=False)
                else:
                    obstore.put(self._remote, name, data, mode="create")
        except FileExistsError:
            return False
        return True

    def make_durable(self, name: str) -> None:
        """Makes sure that an object which something else wrote outlives a power failure."""
        if self.is_local:
            with self._told(name):
                sync(self._path(name))
                sync(self._path(name).parent)

    def exists(self, name: str) -> bool:
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """Names under a folder (or the root), sorted; parts of unfinished writes are left out."""
        with self._told(prefix):
            if self.is_local:
                found = self._names_local(prefix)
            else:
                pages = obstore.list(self._remote, prefix or None)
                found = [item["path"] for page in pages for item in page]
        return sorted(name for name in found if _PART not in name)

    def files(self) -> list[StoredFile]:
        """The objects directly under the root, and parts of unfinished writes there, sorted by name."""
        with self._told(""):
            if self.is_local:
                found = self._files_local()
            else:
                items = obstore.list_with_delimiter(self._remote)["objects"]
                found = [StoredFile(i["path"], i["size"], i["last_modified"].timestamp()) for i in items]
        return sorted(found)

    def parts(self) -> list[StoredFile]:
        """Parts of unfinished writes, wherever they stand; object stores have none."""
        with self._told(""):
            names = [name for name in self._names_local("") if _PART in name] if self.is_local else []
            found = [file for name in names for file in _stored(name, self._path(name))]
        return sorted(found)

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects for good; those that are not there are passed over."""
        with self._told(names[0] if names else ""):
            if not self.is_local:
                self._delete_remote(list(names))
                return
            for name in names:
                self._path(name).unlink(missing_ok=True)
            for folder in {self._path(name).parent for name in names}:
                sync(folder)

    def _delete_remote(self, names: list[str]) -> None:
        """Some stores say of one object that it is not there, and leave the rest."""
        try:
            obstore.delete(self._remote, names)
        except (NotFoundError, FileNotFoundError):
            for name in names:
                with contextlib.suppress(NotFoundError, FileNotFoundError):
                    obstore.delete(self._remote, name)

    def _names_local(self, prefix: str) -> list[str]:
        base = Path(self.root)
        files = (path for path in (base / prefix).rglob("*") if path.is_file())
        return [path.relative_to(base).as_posix() for path in files]

    def _files_local(self) -> list[StoredFile]:
        if not Path(self.root).is_dir():
            return []
        with os.scandir(self.root) as entries:
            return [file for entry in entries if entry.is_file() for file in _stored(entry.name, entry)]

    def _path(self, name: str) -> Path:
        return Path(self.root) / name

    def _put_local(self, name: str, data: bytes | memoryview, *, replace: bool) -> None:
        path = self._path(name)
        make_folder(path.parent)
        part = path.with_name(f"{path.name}{_PART}{secrets.token_hex(4)}")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                part.rename(path)
            else:
                os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
        sync(path.parent)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Errors of the store, with the place they are about."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, CacheError):
            raise
        except (NotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(f"{self.root}/{name}") from error
        except AlreadyExistsError as error:
            raise FileExistsError(f"{self.root}/{name}") from error
        except (OSError, BaseError) as error:
            raise CacheError(
                "the cache's storage refuses",
                where=f"{self.root}/{name}",
                got=one_line(error),
                do="Check the path, its permissions, free space and credentials",
            ) from error


def _local_root(text: str) -> str:
    path = str(Path(text).absolute())
    if unquote(path) != path:
        raise UsageError(
            "a cache's path cannot hold a percent escape: Delta would look elsewhere",
            where=path,
            do="Choose another folder",
        )
    return path


def _stored(name: str, place: Path | os.DirEntry[str]) -> Iterator[StoredFile]:
    """A file, unless it is gone since it was listed: the parts of another's writes come and go."""
    with contextlib.suppress(FileNotFoundError):
        found = place.stat()
        yield StoredFile(name, found.st_size, found.st_mtime)


def _client_options() -> ClientConfig:
    """Plain HTTP is allowed where the user's own endpoint is plain HTTP (MinIO and emulators on one host)."""
    return {"allow_http": plain_http_endpoint()}


def plain_http_endpoint() -> bool:
    """Whether the environment names an endpoint without TLS."""
    return any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
