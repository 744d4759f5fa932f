"""A read-only S3 over a folder, on this machine: the real clients (obstore, Delta) ask it over HTTP.

It answers what a reader asks (GET with ranges, HEAD, ListObjectsV2), counts it, and goes wrong on demand. What MinIO
does is tested in `tests/engines`; this one is there without any download.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"


class Asked(NamedTuple):
    """A read of an object."""

    name: str
    start: int
    end: int
    """Exclusive."""


class Reply(NamedTuple):
    """What is answered in place of what was asked for."""

    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    told_bytes: int | None = None
    """The length that is said, where it is not the body's: the connection ends, or waits, after the body."""
    waits: bool = False
    pieces: int = 1
    """The body comes in so many, with a pause after each."""


@dataclass
class S3:
    """Serves `folder` as `s3://bucket`."""

    folder: Path
    asked: list[Asked] = field(default_factory=list)
    """Every GET that was answered, or refused."""
    before: Callable[[Asked], int | None] = lambda asked: None
    """Called before each answer to a GET; a status that it returns is the answer."""
    instead: Callable[[Asked, Reply], Reply | None] = lambda asked, right: None
    """Called with each right answer to a GET with a range; what it returns is answered in its place."""
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def shards(self) -> list[Asked]:
        """The reads of shards."""
        return [asked for asked in self.asked if asked.name.endswith(".parquet") and "/_" not in asked.name]

    def status(self, asked: Asked) -> int | None:
        with self.lock:
            self.asked.append(asked)
            return self.before(asked)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[S3, dict[str, str]]]:
    """The server, and what the environment must say."""
    s3 = S3(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"s3": s3}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    try:
        yield s3, {**env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    finally:
        s3.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    s3: S3
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        path = self._path()
        if path.is_file():
            self._answer(200, b"", {"Content-Length": str(path.stat().st_size), **_headers(path)})
        else:
            self._answer(404)

    def do_GET(self) -> None:
        if "list-type=2" in self.path:
            self._list()
            return
        path = self._path()
        name = path.relative_to(self.s3.folder).as_posix()
        data = path.read_bytes() if path.is_file() else b""
        range_ = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(range_[1]), int(range_[2]) + 1) if range_ else (0, len(data))
        if status := self.s3.status(Asked(name, start, end)):
            self._answer(status)
            return
        if not path.is_file():
            self._answer(404)
            return
        data = path.read_bytes()
        if range_ is None:
            self._answer(200, data, _headers(path))
        elif start >= len(data):
            self._answer(416)
        else:
            part = data[start:end]
            told = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            right = Reply(206, part, {"Content-Range": told, **_headers(path)})
            self._reply(self.s3.instead(Asked(name, start, end), right) or right)

    def _reply(self, reply: Reply) -> None:
        told = {} if reply.told_bytes is None else {"Content-Length": str(reply.told_bytes)}
        size = -(-len(reply.body) // reply.pieces)
        told = {"Content-Length": str(len(reply.body)), **told}
        self._answer(reply.status, reply.body[:size], {**reply.headers, **told})
        for piece in range(1, reply.pieces):
            self.wfile.flush()
            self.s3.ended.wait(0.02)
            self.wfile.write(reply.body[piece * size : (piece + 1) * size])
        if reply.waits:
            self.wfile.flush()
            self.s3.ended.wait()
        self.close_connection |= reply.told_bytes is not None

    def _path(self) -> Path:
        return self.s3.folder / unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}").lstrip("/")

    def _list(self) -> None:
        asked = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, after = asked.get("prefix", ""), asked.get("start-after", "")
        keys, folders = [], set()
        for path in sorted(self.s3.folder.rglob("*")):
            key = path.relative_to(self.s3.folder).as_posix()
            if not path.is_file() or not key.startswith(prefix) or key <= after:
                continue
            rest = key[len(prefix) :]
            if asked.get("delimiter") and "/" in rest:
                folders.add(prefix + rest.partition("/")[0] + "/")
                continue
            keys.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size><ETag>&quot;e&quot;</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders)
        body = (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys)}</KeyCount>"
            f"<MaxKeys>1000000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(keys)}{common}</ListBucketResult>"
        )
        self._answer(200, body.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        told = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _headers(path: Path) -> dict[str, str]:
    found = path.stat()
    tag = hashlib.md5(f"{found.st_mtime_ns} {found.st_size}".encode()).hexdigest()
    return {"ETag": f'"{tag}"', "Last-Modified": formatdate(found.st_mtime, usegmt=True)}
