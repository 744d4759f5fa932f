"""A hub over a folder, on this machine: the real client (`HfApi`, `HfFileSystem`) asks it over HTTP.

It answers the few questions that listing and reading a data set takes (its commit, a folder, a path, bytes of a file),
counts what it was asked, and goes wrong on demand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

NAME, COMMIT = "people/texts", "c0ffee" * 6 + "beef"
_API = re.compile(
    rf"/api/(?:datasets|models)/{NAME}(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+))?(?P<rest>/.*)?"
)
_FILE = re.compile(rf"(?:/datasets)?/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_INFO = {"id": NAME, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0}


@dataclass
class Hub:
    """Serves `folder` as data set and model `people/texts`, which has one branch, `main`, and one commit."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    """Each request's method and path."""
    instead: Callable[[str], tuple[int, bytes] | None] = lambda path: None
    """Called with the path of each file that is read; what it returns is the answer."""
    token: str | None = None
    """Who does not show it is told that there is no such data set, as of a private one."""
    url: str = ""

    def entry(self, path: Path) -> dict[str, object]:
        """A file or folder as the API has it."""
        name = path.relative_to(self.folder).as_posix()
        kind = "directory" if path.is_dir() else "file"
        return {
            "type": kind,
            "path": name,
            "oid": "0" * 40,
            "size": 0 if path.is_dir() else path.stat().st_size,
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.token and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            return self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if found := _FILE.fullmatch(path):
            return self._file(found["revision"], found["path"])
        if found := _API.fullmatch(path):
            return self._api(
                found["what"], found["revision"], (found["rest"] or "").strip("/"), parse_qs(parts.query)
            )
        return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _api(self, what: str | None, revision: str | None, rest: str, query: dict[str, list[str]]) -> None:
        hub = self.hub
        if revision not in (None, "main", COMMIT):
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if what == "tree":
            root = hub.folder / rest
            if not root.is_dir():
                return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._json(
                [hub.entry(path) for path in sorted(root.rglob("*") if deep else root.iterdir())]
            )
        if what == "paths-info":
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            names = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            return self._json(
                [hub.entry(hub.folder / name) for name in names if (hub.folder / name).exists()]
            )
        return self._json({**_INFO, "siblings": self._siblings()})

    def _siblings(self) -> list[dict[str, object]]:
        paths = sorted(path for path in self.hub.folder.rglob("*") if path.is_file())
        return [{"rfilename": path.relative_to(self.hub.folder).as_posix()} for path in paths]

    def _file(self, revision: str, name: str) -> None:
        path = self.hub.folder / name
        if revision != COMMIT or not path.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if wrong := self.hub.instead(name):
            return self._answer(*wrong, {})
        data = path.read_bytes()
        tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if span := re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers.get("range") or ""):
            start, end = int(span[1]), min(int(span[2]) + 1, len(data))
            return self._answer(
                206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
            )
        return self._answer(200, data, tag)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub while the block runs; nothing is told to the client: `HF_ENDPOINT` names it."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
