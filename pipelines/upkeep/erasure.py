"""Which rows are to be forgotten, where they stand, and how every trace of them leaves a cache's folder.

Rows are found by example id, document hash or document id, in the identity columns of every shard in the folder: live,
of old versions, and orphans. A shard that is not live and cannot be read may hold anything, and goes too.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pipelines.upkeep.near_ids import Likely
from schemas.cache import REJECTS_FOLDER
from schemas.errors import CorruptionError
from schemas.identity import HASH_BYTES
from schemas.rows.rows import Rows
from schemas.shards.reader import open_footer, read_identities
from schemas.spec import Header
from schemas.storage.storage import Storage, StoredFile
from schemas.versions.commits import read_version
from schemas.versions.history import is_shard


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be forgotten: each line of the user's file, as a document id and, where it is one, as a hash."""

    lines: tuple[str, ...]

    @property
    def ids(self) -> dict[str, int]:
        """Number of the line that holds a document id."""
        return {line: number for number, line in enumerate(self.lines)}

    @property
    def hashes(self) -> dict[bytes, int]:
        """Number of the line that holds a document's hash or an example's id, in hex."""
        return {found: number for number, line in enumerate(self.lines) if (found := as_hash(line))}

    def items(self) -> list[bytes | str]:
        """All that goes on the list of what may not come back."""
        return [*self.ids, *self.hashes]


def as_hash(line: str) -> bytes | None:
    """The bytes of 32 hex digits; None for any other text."""
    if len(line) != 2 * HASH_BYTES or not line.isascii() or not line.isalnum():
        return None
    try:
        return bytes.fromhex(line)
    except ValueError:
        return None


class Found(NamedTuple):
    """What one shard of the folder holds of it. Plain types, for Beam."""

    name: str
    size_bytes: int
    live: bool
    readable: bool
    examples: list[bytes]
    """Rows to forget."""
    documents: list[bytes]
    """Hashes of documents of which every row is to be forgotten."""
    ids: list[str]
    """Their ids."""
    lines: list[int]
    """Numbers of the lines that were met."""
    near: tuple[tuple[int, int], ...] = ()
    """Lines that nearly are a row's id (`pipelines/upkeep/near_ids.py`)."""

    @property
    def must_go(self) -> bool:
        return bool(self.examples) or not self.readable


def search(storage: Storage, header: Header, file: tuple[str, int, bool], wanted: Wanted) -> Found:
    """Looks for the wanted rows in one shard: its name, its size, and whether it is live.

    Raises:
        CorruptionError: a live shard is broken.
    """
    name, size, live = file
    try:
        opened = open_footer(storage, name, size=size)
        rows = read_identities(storage, name, opened, header.spec)
    except CorruptionError as error:
        if live:
            raise CorruptionError(
                "a live shard is broken, and may hold what is to be forgotten",
                where=error.where,
                got=error.what,
                do="Run `teachonce verify --repair`, and then forget again",
            ) from error
        return Found(name, size, live, False, [], [], [], [])
    near = _near(rows, wanted) if live else ()
    examples: list[bytes] = []
    documents, ids, lines = set[bytes](), set[str](), set[int]()
    for example, document, key, met, whole in _matches(rows, wanted):
        examples.append(example)
        lines.update(met)
        if whole:
            documents.add(document)
            ids.update(() if key is None else (key,))
    return Found(name, size, live, True, examples, sorted(documents), sorted(ids), sorted(lines), near)


def _matches(rows: Rows, wanted: Wanted) -> Iterator[tuple[bytes, bytes, str | None, list[int], bool]]:
    """Example, document, id, the lines met, and whether the whole document is meant; of each row to forget."""
    hashes, ids = wanted.hashes, wanted.ids
    keys = rows.array("document_id").tolist() if rows.spec.has_document_id else [None] * len(rows)
    documents = (row.tobytes() for row in rows.array("document_hash"))
    for example, document, key in zip(rows.example_ids, documents, keys, strict=True):
        whole = [place[item] for place, item in ((hashes, document), (ids, key)) if item in place]
        met = [*whole, hashes[example]] if example in hashes else whole
        if met:
            yield example, document, key, met, bool(whole)


_likely = functools.lru_cache(maxsize=1)(Likely.of)
"""The same for every shard of a call."""


def _near(rows: Rows, wanted: Wanted) -> tuple[tuple[int, int], ...]:
    """Lines that nearly are the id or a hash of a row which was not asked for."""
    likely, asked, found = _likely(wanted.lines), {*wanted.lines}, set[tuple[int, int]]()
    keys = set(rows.array("document_id").tolist()) if rows.spec.has_document_id else set()
    hashes = (row.tobytes().hex() for row in rows.array("document_hash"))
    for name in {*keys, *hashes, *(example.hex() for example in rows.example_ids)} - asked:
        found |= likely.near((name,))
    return tuple(sorted(found))


class Gone(NamedTuple):
    """What left the folder beside live rows."""

    files: list[str]
    parts: list[str]
    size_bytes: int
    remembered: int
    """Lines of what could not be scored, and of rejects."""
    lines: list[int]
    """Numbers of the user's lines that were met."""


def search_late(storage: Storage, header: Header, wanted: Wanted, found: Iterable[Found]) -> list[Found]:
    """Shards with the rows that came since the folder was listed, from a run that can no longer commit them."""
    known = {one.name for one in found}
    came = [file for file in storage.files() if is_shard(file.name) and file.name not in known]
    live = {shard.name for shard in read_version(storage).shards} if came else set()
    others = ((file.name, file.size_bytes, False) for file in came if file.name not in live)
    return [one for one in (search(storage, header, file, wanted) for file in others) if one.examples]


def documents_of(wanted: Wanted, found: Iterable[Found]) -> set[bytes]:
    """Hashes of all that was asked for, or that was found under an id that was."""
    return {*wanted.hashes, *(document for one in found for document in one.documents)}


def erase(
    storage: Storage,
    wanted: Wanted,
    found: Sequence[Found],
    unscored: Sequence[bytes],
    parts: Sequence[StoredFile],
) -> Gone:
    """Deletes shards that must go, `parts` of unfinished writes, and lines of rejects; also when asked twice.

    `unscored` are the documents of which lines left what could not be scored.
    """
    gone = [one for one in found if one.must_go]
    storage.delete([*(one.name for one in gone), *(part.name for part in parts)])
    hashes, texts = wanted.hashes, wanted.ids
    ids = {name for one in found for name in one.ids}
    ids |= {item.hex() for one in found for item in (*one.examples, *one.documents)}
    rejects = erase_rejects(storage, {*texts, *(item.hex() for item in hashes), *ids})
    met = {number for one in found for number in one.lines}
    met |= {hashes[document] for document in unscored if document in hashes}
    told = set(rejects)
    met |= {number for text, number in texts.items() if text in told}
    return Gone(
        files=[one.name for one in gone],
        parts=[part.name for part in parts],
        size_bytes=sum(one.size_bytes for one in gone) + sum(part.size_bytes for part in parts),
        remembered=len(unscored) + len(rejects),
        lines=sorted(met),
    )


def erase_rejects(storage: Storage, ids: Collection[str]) -> list[str]:
    """Rewrites the files of rejects without some ids of documents or examples; the id of each line that went."""
    gone: list[str] = []
    for name in storage.names(REJECTS_FOLDER):
        lines = storage.read(name).splitlines(keepends=True)
        found = {number: text for number, text in enumerate(map(_id_of, lines)) if text in ids}
        if found:
            kept = (line for number, line in enumerate(lines) if number not in found)
            storage.put(name, b"".join(kept))
        gone += [text for text in found.values() if text is not None]
    return gone


def _id_of(line: bytes) -> str | None:
    """The id in one line of rejects; None where there is none."""
    try:
        text = json.loads(line)["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What `forget` did."""

    run: str
    version: int
    """The newest, after it."""
    committed: bool
    examples: int
    """Rows that left the newest version."""
    documents: int
    """Documents of which all rows left."""
    rewritten_shards: int
    deleted_files: int
    """Shards, of any version or of none, that held the rows or could not be read; and parts of unfinished writes."""
    deleted_bytes: int
    remembered_lines: int
    """Erased from what could not be scored, and from the lists of rejects."""
    unreadable_versions: tuple[int, ...]
    """Every version that can no longer be read, also those given up before."""
    not_found: tuple[str, ...]
    """Kept out from now on all the same."""
    likely: Mapping[str, str]
    """Of these, what is nearly an id that the cache has, and what to say of it."""
    living_runs: tuple[str, ...]
    """Runs that `force` took for dead."""
    strangers: tuple[str, ...]
    """What stands in the folder, is not the cache's by its name, and was not looked into."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def joined(parts: Sequence[Erased]) -> Erased:
    """What several jobs did, one after the other."""
    first, *others = parts
    for one in others:
        summed = {
            name: getattr(first, name) + getattr(one, name)
            for name in (
                "examples",
                "documents",
                "rewritten_shards",
                "deleted_files",
                "deleted_bytes",
                "remembered_lines",
                "not_found",
            )
        }
        likely = {**first.likely, **one.likely}
        first = replace(one, **summed, likely=likely, committed=first.committed or one.committed)
    return first
