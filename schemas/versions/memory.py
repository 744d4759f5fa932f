"""What a cache remembers beside its rows: what its teacher could not score, and what was asked to be forgotten.

Both are sets that only grow, in small files of JSON under `_teachonce/`. A file's name ends in the hash of its bytes,
so that what was flipped or cut is seen. Each stands as soon as it is known, whatever becomes of the run; the next
commit names it in its record, and from then on it is missed when it is gone. Of what was forgotten only salted hashes
are left: they tell that something is on the list to who holds it, and nothing to who does not.

What could not be scored is written before the first commit says which teacher the cache is of. So each such file tells
its fingerprint and spec, and a run of another passes it over.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from schemas.errors import CorruptionError
from schemas.identity import HASH_BYTES
from schemas.limits import OF_JSON, conform, parse_json, told
from schemas.spec import Header
from schemas.storage.storage import Storage

UNSCORED_FOLDER = "_teachonce/unscored"
FORGOTTEN_FOLDER = "_teachonce/forgotten"
_NOT_WRITTEN = "a file of the cache's memory is not what was written"
_NAME = re.compile(r".*-(?P<hash>[0-9a-f]{32})\.json")


class Unscored(NamedTuple):
    """One window of a document that the teacher could not score. Plain types, for Beam."""

    document_hash: bytes
    window_index: int
    window_count: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """Salted hashes of documents, document ids and examples that may not come back."""

    salts: tuple[bytes, ...] = ()
    hashes: frozenset[bytes] = frozenset()

    def has(self, item: bytes | str) -> bool:
        """Whether a document's hash, its id or an example's id is on the list."""
        return any(_salted(salt, item) in self.hashes for salt in self.salts)


def remembered_names(storage: Storage, folder: str) -> tuple[str, ...]:
    """The files of one of the two folders, for a run to read: listed once, before it."""
    return tuple(name for name in storage.names(folder) if _NAME.fullmatch(name))


def memory_after(storage: Storage, before: Iterable[str]) -> tuple[str, ...]:
    """What a commit vouches for: what the one before it did, and all that has been remembered since."""
    folders = (UNSCORED_FOLDER, FORGOTTEN_FOLDER)
    return tuple(sorted({*before, *(name for one in folders for name in remembered_names(storage, one))}))


def lost_memory(storage: Storage, vouched: Iterable[str]) -> list[str]:
    """Files of the cache's memory that a commit vouches for, and that are gone."""
    return sorted({*vouched} - {*memory_after(storage, ())})


def refuse_lost_memory(storage: Storage, vouched: Iterable[str]) -> None:
    """Looks for every file of the cache's memory that the newest commit vouches for.

    Raises:
        CorruptionError: one is gone.
    """
    if lost := lost_memory(storage, vouched):
        raise CorruptionError(
            f"{len(lost)} files of the cache's memory are missing",
            where=f"{storage.root}/{lost[0]}",
            do="Restore them from a copy; or run `teachonce verify --repair`, which goes on without them, and give "
            "the ids to `teachonce forget` again",
        )


def write_unscored(storage: Storage, header: Header, unscored: Iterable[Unscored]) -> None:
    """Remembers windows that the cache's teacher could not score."""
    _write_unscored(storage, _maker(header), unscored)


def read_unscored(storage: Storage, header: Header, name: str) -> list[Unscored]:
    """One file of what could not be scored; nothing where another teacher, or under another spec, could not.

    Raises:
        CorruptionError: it is not what was written.
    """
    maker, unscored = _read_unscored(storage, name)
    return unscored if maker == _maker(header) else []


class Erasing(NamedTuple):
    """What is to leave the memory of what could not be scored; new files stand already, old ones too."""

    files: list[str]
    """To be deleted."""
    documents: list[bytes]
    """The hash of each line that goes."""


def erase_unscored(storage: Storage, documents: Collection[bytes]) -> Erasing:
    """Writes the files of what could not be scored anew without some documents.

    A file that is not what was written may hold anything: it goes whole, and what it said is tried again.
    """
    files: list[str] = []
    gone: list[bytes] = []
    for name in remembered_names(storage, UNSCORED_FOLDER):
        try:
            maker, lines = _read_unscored(storage, name)
        except CorruptionError:
            files.append(name)
            continue
        if found := [line.document_hash for line in lines if line.document_hash in documents]:
            _write_unscored(storage, maker, (line for line in lines if line.document_hash not in documents))
            files.append(name)
        gone += found
    return Erasing(files, gone)


def _maker(header: Header) -> list[str]:
    return [header.fingerprint.hash, header.spec.hash]


def _write_unscored(storage: Storage, maker: list[str], unscored: Iterable[Unscored]) -> None:
    lines = [[u.document_hash.hex(), u.window_index, u.window_count, u.reason] for u in sorted(set(unscored))]
    if lines:
        _write(storage, UNSCORED_FOLDER, {"maker": maker, "windows": lines})


def _read_unscored(storage: Storage, name: str) -> tuple[list[str], list[Unscored]]:
    value = _read(storage, name)
    with told(_NOT_WRITTEN, f"{storage.root}/{name}", also=OF_JSON):
        maker = [*conform(tuple[str, ...], value["maker"], "maker")]
        return maker, [_unscored(*line) for line in value["windows"]]


def _unscored(document: str, index: int, count: int, reason: str) -> Unscored:
    """One line of a file.

    Raises:
        ValueError: it is none.
    """
    conform(tuple[int, ...], [index, count], "a window")
    if not 0 <= index < count < 2**31:
        raise ValueError(f"window {index} of {count}")
    return Unscored(bytes.fromhex(conform(str, document)), index, count, conform(str, reason))


def write_forgotten(storage: Storage, items: Iterable[bytes | str]) -> None:
    """Puts documents' hashes or ids, or examples' ids, on the list of what may not come back."""
    salt = secrets.token_bytes(HASH_BYTES)
    hashes = sorted(_salted(salt, item).hex() for item in items)
    _write(storage, FORGOTTEN_FOLDER, {"salt": salt.hex(), "hashes": hashes})


def read_forgotten(storage: Storage, names: Sequence[str]) -> Forgotten:
    """The whole list, from its files.

    Raises:
        CorruptionError: one is not what was written.
    """
    parts = [_read(storage, name) for name in names]
    with told(_NOT_WRITTEN, f"{storage.root}/{FORGOTTEN_FOLDER}", also=OF_JSON):
        return Forgotten(
            salts=tuple(bytes.fromhex(part["salt"]) for part in parts),
            hashes=frozenset(bytes.fromhex(text) for part in parts for text in part["hashes"]),
        )


def read_memory(storage: Storage) -> None:
    """Reads every file of the cache's memory.

    Raises:
        CorruptionError: one is not what was written.
    """
    for name in remembered_names(storage, UNSCORED_FOLDER):
        _read_unscored(storage, name)
    read_forgotten(storage, remembered_names(storage, FORGOTTEN_FOLDER))


def _salted(salt: bytes, item: bytes | str) -> bytes:
    """Keyed BLAKE2b; a text and bytes are never the same item."""
    data = b"id:" + item.encode() if isinstance(item, str) else b"hash:" + item
    return hashlib.blake2b(data, digest_size=HASH_BYTES, key=salt).digest()


def _write(storage: Storage, folder: str, value: Any) -> None:
    data = json.dumps(value, separators=(",", ":")).encode()
    storage.put_if_absent(f"{folder}/{len(data)}-{_hash(data)}.json", data)


def _read(storage: Storage, name: str) -> Any:
    where = f"{storage.root}/{name}"
    match = _NAME.fullmatch(name)
    try:
        data = storage.read(name)
    except FileNotFoundError as error:
        raise CorruptionError("a file of the cache's memory is missing", where=where) from error
    if match is None or _hash(data) != match["hash"]:
        raise CorruptionError(
            _NOT_WRITTEN,
            where=where,
            do="Restore it from a copy; or remove it and run `teachonce verify --repair`: what the teacher could not "
            "score is tried again. A list of what to forget must be given to `teachonce forget` again",
        )
    with told(_NOT_WRITTEN, where):
        return parse_json(data)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).hexdigest()
