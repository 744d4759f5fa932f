"""What a cache remembers beside its rows: what its teacher could not score, and what was asked to be forgotten.

Both are sets that only grow, in small files of JSON under `_teachonce/`. A file's name ends in the hash of its bytes,
so that what was flipped or cut is seen; no commit lists them, because what they say stays true whatever becomes of a
run. Of what was forgotten only salted hashes are left: they tell that something is on the list to who holds it, and
nothing to who does not.
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
from schemas.storage import Storage

UNSCORED_FOLDER = "_teachonce/unscored"
FORGOTTEN_FOLDER = "_teachonce/forgotten"
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


def write_unscored(storage: Storage, unscored: Iterable[Unscored]) -> None:
    """Remembers windows that the teacher could not score."""
    lines = [[u.document_hash.hex(), u.window_index, u.window_count, u.reason] for u in sorted(set(unscored))]
    if lines:
        _write(storage, UNSCORED_FOLDER, lines)


def read_unscored(storage: Storage, name: str) -> list[Unscored]:
    """One file of what could not be scored.

    Raises:
        CorruptionError: it is not what was written.
    """
    return [Unscored(bytes.fromhex(line[0]), *line[1:]) for line in _read(storage, name)]


def erase_unscored(storage: Storage, documents: Collection[bytes]) -> list[bytes]:
    """Rewrites the files of what could not be scored without some documents; the hash of each line that went.

    A file that is not what was written may hold anything: it goes whole, and what it said is tried again.
    """
    gone: list[bytes] = []
    for name in remembered_names(storage, UNSCORED_FOLDER):
        try:
            lines = read_unscored(storage, name)
        except CorruptionError:
            storage.delete([name])
            continue
        found = [line.document_hash for line in lines if line.document_hash in documents]
        if found:
            write_unscored(storage, (line for line in lines if line.document_hash not in documents))
            storage.delete([name])
        gone += found
    return gone


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
        read_unscored(storage, name)
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
            "a file of the cache's memory is not what was written",
            where=where,
            do="Remove it: what the teacher could not score is tried again. A list of what to forget must be given "
            "to `teachonce forget` again",
        )
    return json.loads(data)


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).hexdigest()
