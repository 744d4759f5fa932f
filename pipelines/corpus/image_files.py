"""Images in files: one a file, or many in a tar as webdataset has them. Each becomes a record with fields.

* A file has the fields `image`, `path` and `label`: the name of its folder, as in `imagefolder`.
* In a tar all members that stand one after the other and have one name up to the first dot are a record. Its fields
  are `__key__` (that name), `image`, the members' extensions (`cls` a whole number where it is one, other text as it
  is), and the fields of a member `json`.

What a record may take in memory is bounded, and a tar that does not end as tars end is an error, wherever it was cut.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any

from pipelines.corpus.lines import LongLine, Record
from schemas.errors import CorpusError, TruncatedFileError

IMAGE_FORMATS = ("tar", "image")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
)
IMAGE, LABEL, PATH, KEY = "image", "label", "path", "__key__"
_TEXTS = ("cls", "txt", "text", "label", "class", "caption", "id")
_ENDS = "unexpected end of data"
"""What `tarfile` itself says of a member that was cut."""
_CHUNK_BYTES, _BUFFER_BYTES = 2**20, 2**17


def image_records(
    file: IO[bytes], path: str, kind: str, limit: int, chunks: Iterable[bytes] | None
) -> Iterator[Record]:
    """The records of an image's file, or of a tar; `chunks` are the bytes of a compressed one.

    Raises:
        TruncatedFileError: a tar ends too early.
        CorpusError: it is none.
    """
    source = _Source(file if chunks is None else _Chunks(chunks))
    if kind == "image":
        data = source.read(limit + 1)
        value: Any = {IMAGE: data, PATH: path, LABEL: PurePosixPath(path).parent.name}
        yield Record(0, value if len(data) <= limit else LongLine(len(data)))
        return
    try:
        yield from _samples(source, path, limit)
    except tarfile.TarError as error:
        if _ENDS in str(error):
            raise _cut(path) from error
        raise CorpusError("a corpus file is no tar", where=path, got=str(error)) from error


class _Chunks(io.RawIOBase):
    """A stream of chunks as a file."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._left = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts, wanted = [], size if size >= 0 else 2**62
        while wanted:
            self._left = self._left or next(self._chunks, b"")
            if not self._left:
                break
            parts.append(self._left[:wanted])
            self._left = self._left[wanted:]
            wanted -= len(parts[-1])
        return b"".join(parts)


class _Strict(tarfile.TarInfo):
    """A tar ends with a block of zeros: where another header cannot be read, `tarfile` ends without a word."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Strict":  # noqa: UP037  quoted, for whoever checks types at run time
        try:
            return super().fromtarfile(tar)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(_ENDS) from error
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a header at byte {tar.offset:,} that is none") from error


class _Source:
    """A file whose reads are whole."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """So many bytes, or all that are left."""
        parts, left = [], size
        while left and (data := self._file.read(min(left, _CHUNK_BYTES))):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)


def _samples(source: _Source, path: str, limit: int) -> Iterator[Record]:
    held: dict[str, Any] = {}
    offset = size = 0
    stream: Any = source  # of a file, a tar that is streamed needs `read` alone
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_BUFFER_BYTES, tarinfo=_Strict) as tar:
        for member in tar:
            if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                continue
            key, extension = _split(member.name)
            if held and held[KEY] != key:
                yield _record(held, offset, size, limit)
                held, size = {}, 0
            if not held:
                held, offset = {KEY: key}, member.offset
            size += member.size
            if size <= limit:
                opened = tar.extractfile(member)
                assert opened is not None, member.name
                held |= _fields(held, extension, opened.read())
    if held:
        yield _record(held, offset, size, limit)


def _record(held: dict[str, Any], offset: int, size: int, limit: int) -> Record:
    return Record(offset, held if size <= limit else LongLine(size))


def _split(name: str) -> tuple[str, str]:
    """A member's name up to the first dot of its last part, and what is behind."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.parent / stem), extension.lower()


def _fields(held: Mapping[str, Any], extension: str, data: bytes) -> dict[str, Any]:
    """What one member adds to a record; a `json` that is none, text that is not UTF-8, or a second image, as what no
    reader of such a field takes. `a.seg.png` is no image of the record's, but its field `seg.png`; members go before
    what a `json` says."""
    last = extension.rpartition(".")[2]
    if f".{extension}" in IMAGE_SUFFIXES:
        return {IMAGE: [held[IMAGE], data] if IMAGE in held else data, extension: data}
    try:
        if last == "json":
            value = json.loads(data)
            if not isinstance(value, dict):
                return {extension: value}
            return {name: own for name, own in value.items() if name not in {*held, KEY, IMAGE}}
        if last in _TEXTS:
            text = data.decode("utf-8").strip()
            return {extension: int(text) if last == "cls" and text.lstrip("-").isdecimal() else text}
    except (ValueError, RecursionError):
        pass
    return {extension: data}


def _cut(path: str) -> TruncatedFileError:
    return TruncatedFileError(
        "a corpus file ends inside a tar", where=path, do="Copy the file again; nothing was committed"
    )
